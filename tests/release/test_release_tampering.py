"""A release that was changed, is incomplete or cannot be reproduced here is refused; nothing in it is a pickle."""

from __future__ import annotations

import ast
import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from clinic_fixtures import Finished, call
from onnx import numpy_helper

import medopt
from medopt.core.errors import ReleaseError
from medopt.release.build import build_release
from medopt.release.golden import open_every_model, record_answers, replay, verify_release
from medopt.release.layout import SUMS, check_sums, read_info, write_sums
from medopt.release.predictor import Release
from medopt.transforms import prepare

FILES = (
    *(
        "CARD.md",
        "SHA256SUMS",
        "card.json",
        "domain.json",
        "reference.json",
        "golden.json",
        "images_seen.txt",
        "model.float.onnx",
        "model.int8.onnx",
        "release.json",
        "sbom.cdx.json",
    ),
    *(f"golden/case-{number}.dcm" for number in (1, 2, 3)),
)


@pytest.fixture
def release(finished: Finished, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(finished.release, tmp_path / "release"))


def rewrite(path: Path, **changes: Any) -> None:
    """Change a JSON file and seal the release again, as someone who knows how it is made could."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    write_sums(path.parent)


def test_release_holds_these_files_and_verifies(release: Path) -> None:
    found = {path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file()}
    assert found == set(FILES)
    rows = verify_release(release, threads=1).cases
    assert len(rows) == 3 * sum(len(model.engines) for model in read_info(release).models.values())
    assert max(row.difference for row in rows) < 1e-6  # the machine that built it


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_found(release: Path, name: str) -> None:
    path = release / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for opened in (Release.open, verify_release):
        with pytest.raises(ReleaseError, match="is refused" if name == SUMS else f"{name} was changed"):
            opened(release)


def test_no_byte_of_the_list_itself_may_change(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medopt.release import layout

    found = layout._sums(release)
    monkeypatch.setattr(layout, "_sums", lambda folder: found)  # hashed once, not for every byte of the list
    check_sums(release)
    whole = (release / SUMS).read_bytes()
    breaks = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for at in (*range(0, len(whole), 5), *breaks):
        (release / SUMS).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ReleaseError):
            check_sums(release)


@pytest.mark.parametrize("name", ["note.txt", "golden/.hidden", "model.onnx"])
def test_added_file_is_refused(release: Path, name: str) -> None:
    (release / name).write_text("x")
    with pytest.raises(ReleaseError, match=f"{name} does not belong to it"):
        verify_release(release)
    call("predict", release, release / "golden").refused(6, "ReleaseError", name)


@pytest.mark.parametrize("name", [name for name in FILES if name != SUMS])
def test_removed_file_is_refused(release: Path, name: str) -> None:
    (release / name).unlink()
    with pytest.raises(ReleaseError, match=f"{name} is missing"):
        Release.open(release)


def test_what_is_no_release_is_refused(release: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(ReleaseError, match="not a release"):
            verify_release(folder)
        call("verify", folder).refused(6, "ReleaseError", str(folder))
    (release / SUMS).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReleaseError, match="not a list of checksums"):
        check_sums(release)


def test_unknown_format_and_missing_key_are_refused(release: Path) -> None:
    rewrite(release / "release.json", format=1)
    with pytest.raises(ReleaseError, match="format"):
        Release.open(release)
    (release / "release.json").write_text('{"format": 2}')
    write_sums(release)
    with pytest.raises(ReleaseError, match="study: Field required"):
        Release.open(release)


def test_another_version_of_the_chain_is_refused(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CHAIN_VERSION", prepare.CHAIN_VERSION + 1)
    for opened in (Release.open, verify_release):
        with pytest.raises(ReleaseError, match="its pixels would differ"):
            opened(release)


def test_settings_that_do_not_fit_the_fingerprint_are_refused(release: Path) -> None:
    settings = json.loads((release / "release.json").read_text())["prepare"] | {"fit": "stretch"}
    rewrite(release / "release.json", prepare=settings)
    with pytest.raises(ReleaseError, match="its pixels would differ"):
        Release.open(release)


def test_engine_that_did_not_pass_is_refused(release: Path) -> None:
    models = json.loads((release / "release.json").read_text())["models"]
    models["int8"]["engines"] = ["onnxruntime"]
    rewrite(release / "release.json", models=models)
    with pytest.raises(ReleaseError, match="openvino did not pass the gate for the int8 model; passed: onnxruntime"):
        Release.open(release, engine="openvino")
    assert Release.open(release).engine.name == "onnxruntime"
    assert Release.open(release, "float", "openvino").engine.name == "openvino"


def test_golden_cases_find_a_changed_chain(release: Path) -> None:
    """Even where the fingerprint was made to fit: the pixels themselves are compared."""
    settings = read_info(release).prepare
    changed = settings.model_copy(update={"intensity": settings.intensity.model_copy(update={"high": 5000})})
    fingerprint = prepare.PrepareChain(changed).fingerprint
    rewrite(release / "release.json", prepare=changed.model_dump(mode="json"), chain_fingerprint=fingerprint)
    with pytest.raises(ReleaseError, match=r"case-1\.dcm: prepared pixels differ"):
        verify_release(release)


def test_golden_cases_find_changed_probabilities(release: Path) -> None:
    models = json.loads((release / "release.json").read_text())["models"]
    models["float"]["calibration"]["temperature"] /= 1000
    rewrite(release / "release.json", models=models)
    with pytest.raises(ReleaseError, match=r"case-\d\.dcm: float/\w+ answers differ by 0\.\d+"):
        verify_release(release)


def shift_logits(path: Path, by: float) -> None:
    model = onnx.load(path)
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Gemm")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == last.input[2])
    bias.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(bias) + by).astype(np.float32), bias.name))
    onnx.save(model, path)


def test_golden_cases_find_changed_weights(release: Path) -> None:
    shift_logits(release / "model.int8.onnx", 3.0)
    write_sums(release)
    with pytest.raises(ReleaseError, match=r"int8/\w+ answers differ") as caught:
        verify_release(release)
    assert "float/" not in str(caught.value)


def test_answer_that_is_not_a_number_is_no_agreement(release: Path) -> None:
    predictors = open_every_model(release, threads=1)
    golden = json.loads((release / "golden.json").read_text())
    first = next(iter(golden["cases"][0]["answers"].values()))
    first.update(dict.fromkeys(first, float("nan")))
    (release / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(ReleaseError, match="answers differ by nan"):
        replay(release, read_info(release), predictors)


def test_recorded_answers_are_those_of_the_build(release: Path) -> None:
    before = json.loads((release / "golden.json").read_text())
    scans = [release / case["scan"] for case in before["cases"]]
    record_answers(release, open_every_model(release, threads=1), scans)
    after = json.loads((release / "golden.json").read_text())
    for old, new in zip(before["cases"], after["cases"], strict=True):
        assert new["pixels"] == pytest.approx(old["pixels"], abs=1e-7)
        assert new["answers"] == {key: pytest.approx(value, abs=1e-6) for key, value in old["answers"].items()}


def test_release_that_cannot_be_built_leaves_the_earlier_one(release: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ReleaseError, match="cannot load"):
        build_release(release, read_info(release), {"int8": broken, "float": release / "model.float.onnx"})
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")]
    check_sums(release)


def test_files_are_what_their_names_say_and_no_pickle(finished: Finished) -> None:
    heads = {".md": b"# ", ".json": b"{", ".onnx": b"\x08"}
    for name in FILES:
        content = (finished.release / name).read_bytes()
        if name == SUMS:
            assert all(len(line.split("  ")[0]) == 64 for line in content.decode("ascii").splitlines())
        elif name.endswith(".dcm"):
            assert content[128:132] == b"DICM"
        elif name.endswith(".txt"):
            assert base64.b64decode(content, validate=True)  # digests
        else:
            assert content.startswith(heads[Path(name).suffix]), name
    checkpoints = [path for path in (finished.folder / "checkpoints").rglob("*") if path.is_file()]
    checkpoints.remove(finished.folder / "checkpoints" / "images_seen.txt")  # digests
    assert {path.suffix for path in checkpoints} == {".safetensors"}
    for path in checkpoints:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        assert {"medopt"} == set(json.loads(content[8 : 8 + length])["__metadata__"])
    prepared = list((finished.runs / "cache").rglob("*.npy"))
    assert len(prepared) == 72
    assert all(np.load(path, allow_pickle=False).dtype == np.uint16 for path in prepared)


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Imports of pickling modules, torch.load and allow_pickle."""
    modules = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names if item.name.partition(".")[0] in modules)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in modules:
            yield str(node.module)
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            yield from ("torch.load" for item in node.names if item.name == "load")
        elif isinstance(node, ast.Attribute) and node.attr in ("load", "save") and ast.unparse(node.value) == "torch":
            yield f"torch.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield "allow_pickle"


def test_no_module_unpickles() -> None:
    text = "import pickle\nfrom dill import loads\ntorch.load(x)\nfrom torch import load\nnp.load(x, allow_pickle=True)"
    assert sorted(unsafe(ast.parse(text))) == ["allow_pickle", "dill", "pickle", "torch.load", "torch.load"]
    sources = list(Path(medopt.__file__).parent.rglob("*.py"))
    assert len(sources) > 50
    found = {path.name: list(unsafe(ast.parse(path.read_text()))) for path in sources}
    assert {name: what for name, what in found.items() if what} == {}
