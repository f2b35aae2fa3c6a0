"""The tool that counts unnoticed changes: what it copies of the repository, and which modules it takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


def test_the_copy_has_the_code_below_every_folder_and_the_words_name_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    from mutate import ROOT, chosen_modules, left_out

    assert left_out(str(ROOT), ["data", "runs", "medopt", ".git"]) == {"data", "runs", ".git"}
    assert left_out(str(ROOT / "medopt"), ["data", "build", "__pycache__"]) == {"__pycache__"}
    modules = ["medopt/pacs/spool.py", "medopt/pacs/ledger.py"]
    assert (chosen_modules(modules, ["spool"]), chosen_modules(modules, [])) == (modules[:1], modules)
    with pytest.raises(ValueError, match=r"no module .* has 'nothing' in its path"):
        chosen_modules(modules, ["spool", "nothing"])
