"""README and docs/: links lead somewhere, commands and study files are read by the program, generated pages are new."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from real_data import REPO

import medopt
from medopt.cli.main import app
from medopt.config import Study
from medopt.config.study_file import parse_study
from medopt.core import errors
from medopt.core.errors import MedoptError
from medopt.manifest.table import OPTIONAL
from medopt.pacs.settings import NodeSettings
from medopt.serving.prediction_table import DETAILS

DOCS = sorted((REPO / "docs").rglob("*.md"))
PAGES = [REPO / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "mlflow/README.md")] + DOCS
GENERATED = ("command-line.md", "study-file.md", "node-file.md")
BASE = """
name: lesions
question: Does the image show a malignant lesion?
data: {manifest: m.csv, labels: [benign, malignant]}
prepare: {size: [64, 64]}
"""
MAKE = re.compile(r"^make ([a-z-]+)", re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(REPO).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(script: str) -> Iterator[list[str]]:
    """The medopt commands of a shell script, as words; comments are left out."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&;|"):
                start = next((at for at, one in enumerate(words) if Path(one).name == "medopt"), None)
                if start is not None and not {"pip"} & set(words):
                    yield words[start + 1 :]
                words = []
            else:
                words.append(word)


@cache
def program() -> Any:
    return typer.main.get_command(app)


def parse(words: list[str]) -> Any:
    """Read a command as the program does, without running it; raises what a wrong one raises."""
    command = program()
    while hasattr(command, "commands"):
        assert words, "no command is named"
        name, *words = words
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    return command.make_context(command.name, list(words))


def scripts(page: Path) -> list[str]:
    """Fenced blocks, and indented lines that begin with medopt."""
    return [*blocks(page, "sh"), *re.findall(r"^    (medopt .*)", page.read_text(encoding="utf-8"), re.MULTILINE)]


SCRIPTS = [(name_of(page), words) for page in PAGES for block in scripts(page) for words in commands(block)]


@pytest.mark.parametrize(("page", "words"), SCRIPTS, ids=[f"{page}: {shlex.join(words)}" for page, words in SCRIPTS])
def test_every_command_of_a_block_is_one_that_the_program_reads(page: str, words: list[str]) -> None:
    with parse(words):
        pass


def test_a_wrong_command_would_be_found() -> None:
    assert len(SCRIPTS) > 100
    for wrong in ("medopt rnu a.yaml", "medopt run", "medopt run a.yaml --epochs 3", "cd x && medopt plan a.csv # b"):
        (words,) = commands(wrong)
        with pytest.raises(Exception):  # noqa: B017  typer's own errors, or this file's assertion
            parse(words)


@pytest.mark.parametrize("page", [*PAGES], ids=name_of)
def test_commands_and_options_within_a_text_exist(page: Path) -> None:
    """`medopt compress RUN` in a sentence: the command and its options, while arguments may be left out."""
    for inline in re.findall(r"`medopt ([^`]*)`", page.read_text(encoding="utf-8")):
        command = program()
        words = [word for word in inline.replace("\n", " ").split() if word != "..."]
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            if not words[0].islower():
                break  # medopt COMMAND
            assert words[0] in command.commands, inline
            command = command.commands[words.pop(0)]
        options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        given = {word.partition("=")[0].rstrip(",.") for word in words if re.match(r"--?[a-z]", word)}
        assert given <= options | {"-h", "--help"}, inline


@pytest.mark.parametrize("page", [*PAGES], ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in headings}


def test_the_documentation_builds_with_every_page_and_link(tmp_path: Path) -> None:
    """`make docs`: strict, so that a page outside the contents and a link or anchor that leads nowhere are errors."""
    command = [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--quiet", "--site-dir", tmp_path]
    quiet = os.environ | {"NO_COLOR": "1"}
    built = subprocess.run(command, check=False, cwd=REPO, capture_output=True, text=True, env=quiet)
    assert built.returncode == 0, built.stderr
    pages = {page.parent.relative_to(tmp_path).as_posix() for page in tmp_path.rglob("index.html")}
    assert pages == {
        re.sub(r"(^|/)index$", ".", page.relative_to(REPO / "docs").with_suffix("").as_posix()) for page in DOCS
    }


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for page in PAGES for block in blocks(page, "sh") for name in MAKE.findall(block)}
    assert {"demo", "setup"} <= named <= targets


YAML = [(name_of(page), block) for page in PAGES for block in blocks(page, "yaml")]


@pytest.mark.parametrize(("page", "block"), YAML, ids=[f"{page} {at}" for at, (page, _) in enumerate(YAML)])
def test_study_and_node_files_in_a_page_are_valid(page: str, block: str) -> None:
    keys = yaml.safe_load(block)
    if "aet" in keys:
        NodeSettings.model_validate(keys)
        return
    base = yaml.safe_load(BASE)
    for section, value in keys.items():
        is_part = isinstance(value, dict) and isinstance(base.get(section), dict)
        base[section] = base[section] | value if is_part else value
    assert isinstance(parse_study(base, None, page), Study)


@pytest.mark.parametrize("block", blocks(REPO / "docs/reference/python.md", "python"))
def test_names_of_the_python_example_are_public(block: str) -> None:
    ast.parse(block)
    assert set(re.findall(r"medopt\.(\w+)", block)) <= set(medopt.__all__)


def test_the_python_reference_names_what_is_public() -> None:
    shown = re.findall(r"^::: (\S+)\.(\w+)$", (REPO / "docs/reference/python.md").read_text("utf-8"), re.MULTILINE)
    for module, name in shown:
        place = REPO / module.replace(".", "/")
        assert name in medopt.__all__ and (place.with_suffix(".py").is_file() or (place / "__init__.py").is_file())
    rest = set(medopt.__all__) - {name for _, name in shown}
    assert rest <= {"Study", "PrepareChain", "metrics"}, rest


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", REPO / "docs/generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_what_the_program_says_today(name: str) -> None:
    assert set(generator().pages()) == set(GENERATED)
    committed = (REPO / "docs/reference" / name).read_text(encoding="utf-8")
    assert committed == generator().pages()[name], "make docs-reference writes it anew"


def texts_of_the_program() -> str:
    """Every text in the code, one a line; what an f-string fills in is left out."""
    found = []
    for path in (REPO / "medopt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_of_the_troubleshooting_page_are_those_of_the_program() -> None:
    page = (REPO / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|", page.partition("In the PACS")[0], re.MULTILINE)
    program = texts_of_the_program()
    assert len(rows) > 12
    assert {part for row in rows for part in row.split("...") if part.strip() not in program} == set()


def test_the_page_of_exit_codes_has_all_of_them() -> None:
    rows = re.findall(r"^\| (\d+) \|", (REPO / "docs/reference/exit-codes.md").read_text("utf-8"), re.MULTILINE)
    kinds = (errors.ConfigError, errors.DataError, errors.TrainingError, errors.ReleaseRefused, errors.ReleaseError)
    assert [int(row) for row in rows] == [0, *(kind.exit_code for kind in kinds), 130]


def test_the_page_of_formats_has_the_columns_of_manifests_and_answers() -> None:
    page = (REPO / "docs/reference/formats.md").read_text(encoding="utf-8")
    manifest, answers = page.partition("## Run folder")[0], page.partition("## Answers")[2].partition("##")[0]
    assert {"image", "patient_id", "label", "split", *OPTIONAL} <= set(re.findall(r"`([a-z_]+)`", manifest))
    shown = re.findall(r"`([a-z_ ]+)`", answers)
    assert tuple(name for name in shown if name in DETAILS)[: len(DETAILS)] == DETAILS


def test_the_readme_is_one_page_and_says_what_has_not_run() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    assert "no CUDA line has run yet" in readme and "not a medical device" in readme
    for picture, place in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", readme):
        assert len(picture) > 40 and (REPO / place).stat().st_size < 200_000
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"medopt\[([a-z-]+)\]", "".join(page.read_text("utf-8") for page in PAGES))) <= set(extras)


def test_a_refusal_of_a_study_in_a_page_would_be_found() -> None:
    with pytest.raises(MedoptError, match="did you mean"):
        parse_study(yaml.safe_load(BASE) | {"trainning": {}}, None, "page")
