"""The notebooks run as they stand, one after the other in one folder, as a person would run them."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

pytestmark = pytest.mark.system
NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"
PICTURES = {"01_read_and_prepare": 3, "02_train_and_read_the_results": 4, "03_predict_and_explain": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the notebooks' folder, with what the ones before have drawn and trained."""
    return Path(shutil.copytree(NOTEBOOKS, tmp_path_factory.mktemp("examples") / "notebooks"))


def run(path: Path) -> NotebookNode:
    """The notebook after all its cells; raises CellExecutionError with the cell and its traceback."""
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def is_drawn(png: str) -> bool:
    """Whether a picture is more than a blank page."""
    data = base64.b64decode(png)
    width, height = struct.unpack(">II", data[16:24])
    return min(width, height) > 100 and len(data) > 5000


@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_runs_and_draws(name: str, folder: Path) -> None:
    notebook = run(folder / f"{name}.ipynb")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[name] and all(map(is_drawn, pictures))
    told = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert told.strip() and not re.search(r"\bnan\b", told)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_without_places_of_a_machine(path: Path) -> None:
    assert path.stem in PICTURES
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert not re.search(r"/(home|root|tmp|Users|work)/", path.read_text())
