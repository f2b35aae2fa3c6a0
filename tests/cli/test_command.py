"""What all commands share, and what the version before called it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from clinic import Clinic
from clinic_fixtures import Finished, call, start, wait

from medopt.cli.command import outputs, renamed
from medopt.cli.main import app
from medopt.core.errors import ConfigError

ENDLESS = ("serve", "ui", "pacs run")  # they end when they are stopped, and have no result


def commands(group: Any = None, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name, as `tune lr`."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{above}{name} ")
        elif not command.hidden:
            yield f"{above}{name}", command


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_the_shared_options(name: str) -> None:
    command = COMMANDS[name]
    assert f"Example: medopt {name}" in command.help, command.help
    options = {option: param for param in command.params for option in param.opts}
    assert {"-v", "--verbose", "-q", "--quiet"} <= set(options)
    assert ("--json" in options) == (name not in ENDLESS)
    if "--json" in options:
        assert options["--json"].is_flag
    assert not {"--fleet", "--html", "--sheet", "--fix"} & set(options)
    assert "--engine" not in options or name == "predict"
    assert "--prune" not in options or name == "compress"
    assert all(param.help for param in command.params), name


def test_help_is_in_panels_in_the_order_of_work() -> None:
    done = call("-h")
    places = [done.stdout.index(f"─ {panel} ─") for panel in ("Start", "Data", "Train", "Judge", "Ship", "Team")]
    assert done.code == 0 and places == sorted(places)
    assert call("tune", "lr", "-h").code == 0


@pytest.mark.parametrize(
    ("words", "hint", "code", "said"),
    [
        (["run", "{study}", "--engine", "local", "--dry-run"], "--engine is now --on", 0, ""),
        (["prepare", "none.yaml", "--engine=ray"], "--engine is now --on", 2, "There is no study file none.yaml"),
        (["sweep", "none.yaml", "--param", "a=1", "--no-prune"], "--no-prune is now --no-give-up", 2, "no study file"),
        (["predict", "none", "x.dcm", "--fleet", "ray"], "--fleet is now --on", 6, "There is no release none"),
        (["compare", "none", "--html", "c.html"], "--html is now --out", 3, "There is no run folder"),
        (["compare", "none", "--json", "c.json"], "--json FILE is now --out", 3, "There is no run folder"),
        (["evaluate", "none", "--json=e.json"], "--json FILE is now --out", 3, "There is no run folder"),
        (["manifest", "check", "none.csv", "--fix", "new.csv"], "--fix is now --out", 3, "none.csv"),
        (["manifest", "check", "none.csv", "--sheet", "s.png"], "--sheet is now --out", 3, "none.csv"),
        (["manifest", "build", "none", "--out", "m.csv", "--datalist", "l.json"], "--datalist is now --out", 3, "none"),
        (["version"], "medopt version is now medopt --version", 0, ""),
    ],
)
def test_old_spellings_work_with_a_hint(
    words: list[str], hint: str, code: int, said: str, clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDOPT_DATA", str(clinic.data))
    done = call(*(word.format(study=clinic.study_file) for word in words))
    first, *rest = done.stderr.splitlines()
    assert hint in first and first.endswith("the old spelling works for one more version.")
    assert done.code == code, done.stderr
    assert said in " ".join(rest)


def test_an_old_spelling_is_not_taken_for_a_value() -> None:
    assert renamed(["a", "--", "--engine"], {"--engine": "--on"}) == (["a", "--", "--engine"], [])
    assert renamed(["run", "--json"], {"--json FILE": "--out"}) == (["run", "--json"], [])


def test_outputs_go_by_their_ending() -> None:
    kinds = {".csv": "the table", ".png": "the picture"}
    assert outputs([Path("a.PNG"), Path("b.csv")], kinds) == {".png": Path("a.PNG"), ".csv": Path("b.csv")}
    with pytest.raises(ConfigError, match=r"--out a.txt: the file's ending .*: \.csv \(the table\), \.png"):
        outputs([Path("a.txt")], kinds)
    with pytest.raises(ConfigError, match=r"two files for the table: a\.csv and b\.csv"):
        outputs([Path("a.csv"), Path("b.csv")], kinds)


def test_quiet_leaves_the_results_alone(clinic: Clinic, tmp_path: Path) -> None:
    words = ["prepare", clinic.study_file, "--data", clinic.data, "--json", "--runs"]
    loud, quiet = call(*words, tmp_path / "a"), call("-q", *words, tmp_path / "b")
    assert "72 images are prepared" in loud.stdout and "72 images are prepared" in quiet.stdout
    assert loud.summary["studies"][0]["images"] == quiet.summary["studies"][0]["images"] == 72
    assert quiet.stderr == ""
    call("-q", "-v", *words, tmp_path / "c").refused(2, "ConfigError", "-v shows more and -q shows less")


def test_verbose_shows_what_the_libraries_say() -> None:
    script = (
        "import logging, warnings; from medopt.cli.command import reset_verbosity, set_verbosity; reset_verbosity();"
        "set_verbosity({verbose}, False); warnings.warn('soon gone', FutureWarning);"
        "logging.getLogger('nncf').info('a line'); logging.getLogger('pydicom').warning('a name in a header')"
    )
    said = {}
    for verbose in (True, False):
        words = [sys.executable, "-c", script.format(verbose=verbose)]
        said[verbose] = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stderr
    assert "soon gone" in said[True] and "nncf INFO a line" in said[True]
    assert "soon gone" not in said[False] and "a line" not in said[False]
    assert "a name in a header" not in said[True]


def test_predict_ends_with_one_json_object(finished: Finished, tmp_path: Path) -> None:
    scan = finished.clinic.data / "scans" / "000.dcm"
    done = call("predict", finished.release, scan, "--out", tmp_path / "a.csv", "--json")
    assert done.code == 0, done.stderr
    assert (done.summary["scans"], done.summary["refused"]) == (1, 0)


def test_the_shell_completes_commands_and_studies() -> None:
    def completed(line: str) -> str:
        words = line.split(" ")
        wanted = {"_MEDOPT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        return wait(start(**wanted)).stdout

    assert {"promote", "predict", "prepare"} & set(completed("medopt pr").split()) == {"promote", "predict", "prepare"}
    assert completed("medopt run phan").split() == ["phantom"]
    assert "--install-completion" in call("--help").stdout


def test_nothing_heavy_is_imported_for_help_version_and_wrong_arguments(tmp_path: Path) -> None:
    heavy = ("torch", "monai", "numpy", "mlflow", "pydicom", "scipy", "matplotlib", "medopt.config.study")
    script = (
        "import sys; from medopt.cli.main import main; sys.argv = ['medopt', *sys.argv[1:]]\n"
        "try: main()\n"
        f"except SystemExit: print('found', [name for name in {heavy} if name in sys.modules])"
    )
    nowhere = str(tmp_path / "none")
    for words in (["--version"], ["--help"], ["run", "-h"], ["rnu"], ["predict", nowhere, "x"], ["report", nowhere]):
        command = [sys.executable, "-c", script, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.splitlines()[-1] == "found []", (words, done.stdout[-200:])
