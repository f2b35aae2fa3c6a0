"""Write the generated pages of the reference: the command line, the study file and the node file.

`make docs-reference` runs it after a change of an option or a key; a test compares the pages with what it writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from medopt.cli.command import PANELS
from medopt.cli.main import app
from medopt.config import Study
from medopt.config.explain import KeyDescription, describe_keys
from medopt.pacs.settings import NodeSettings

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py; make docs-reference writes it again. -->\n"
SHARED = {"verbose", "quiet", "help", "as_json"}


def pages() -> dict[str, str]:
    """Each generated page by its file name."""
    return {
        "command-line.md": _command_line(),
        "study-file.md": _keys(
            "The study file",
            "A study file is YAML. Only `name`, `question`, `data.manifest`, `data.labels` and `prepare.size` have no "
            "default. `medopt config explain KEY` shows the same in the terminal, and `medopt config schema` writes a "
            "JSON Schema by which an editor completes.",
            list(describe_keys(Study)),
        ),
        "node-file.md": _keys(
            "The node file",
            "`node.yaml` configures a PACS node. Relative paths start at its folder. A destination or a source has "
            "either `aet`, `host` and `port`, or `url`. `medopt config explain --node KEY` shows the same in the "
            "terminal.",
            list(describe_keys(NodeSettings)),
        ),
    }


def _keys(title: str, text: str, keys: list[KeyDescription]) -> str:
    """A page of keys: those at the top in a table of their own, then a table for each section."""
    parts = [f"# {title}\n", NOTE, f"{text}\n", _table([key for key in keys if "." not in key.path])]
    for section in (key for key in keys if key.is_section):
        own = [key for key in keys if key.path.replace("[]", "").rpartition(".")[0] == section.path.replace("[]", "")]
        parts.append(f"## {section.path}\n\n{_cell(section.meaning)}\n\n{_table(own)}")
    return "\n".join(parts)


def _table(keys: list[KeyDescription]) -> str:
    rows = [
        f"| `{key.path.rpartition('.')[2]}` | {_cell(key.type)} | {_default(key)} | {_cell(key.meaning)} |"
        for key in keys
    ]
    return "\n".join(["| key | takes | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _default(key: KeyDescription) -> str:
    return key.default if key.default in ("", "required") else f"`{key.default}`"


def _cell(text: str) -> str:
    """Text in a cell of a table: signs that Markdown would read are escaped, outside of code."""
    plain = {"<": "&lt;", ">": "&gt;"}
    pieces = re.split(r"(`[^`]*`)", text)
    escaped = (re.sub(r"([|\[\]_*<>])", lambda sign: plain.get(sign[1], f"\\{sign[1]}"), one) for one in pieces)
    return "".join(one if one.startswith("`") else safe for one, safe in zip(pieces, escaped, strict=True))


def _command_line() -> str:
    text = (
        "Every command takes `-h`, `-v` (more, on stderr) and `-q` (results and errors only). With `--json` the last "
        "line of stdout is the result as one JSON object. [Exit codes](exit-codes.md) say what was refused.\n"
    )
    parts = ["# The command line\n", NOTE, text]
    group = typer.main.get_command(app)
    for panel in PANELS:
        parts.append(f"## {panel}\n")
        for name, command in group.commands.items():  # type: ignore[attr-defined]
            if command.rich_help_panel == panel and not command.hidden:
                parts += [_command(full, one) for full, one in _leaves(name, command)]
    return "\n".join(parts)


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for below, one in command.commands.items():
            yield from _leaves(f"{name} {below}", one)
    elif not command.hidden:
        yield name, command


def _command(name: str, command: Any) -> str:
    paragraphs = [" ".join(one.split()) for one in command.help.split("\n\n")]
    example = next(one for one in paragraphs if one.startswith("Example: ")).removeprefix("Example: ")
    text = "\n\n".join(_cell(one) for one in paragraphs if not one.startswith("Example: "))
    params = [param for param in command.params if param.name not in SHARED]
    rows = [f"| {_name(param)} | {_given(param)} | {_cell(_meaning(param))} |" for param in params]
    table = "\n".join(["| option | default | meaning |", "|---|---|---|", *rows]) + "\n" if rows else ""
    return f"### medopt {name}\n\n{text}\n\n```sh\n{example}\n```\n\n{table}"


def _name(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.metavar or (param.name or '').upper()}`".replace("|", "\\|")
    return ", ".join(f"`{option}`" for option in (*param.opts, *param.secondary_opts))


def _meaning(param: Any) -> str:
    """The help of an option, with its choices where it has some."""
    annotation = param.type_descriptor.annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        choices = [str(one.value) for one in annotation]
    else:
        choices = [str(one) for one in get_args(annotation)] if get_origin(annotation) is Literal else []
    said = " ".join((param.help or "").split())
    return f"{said} One of: {', '.join(choices)}." if choices else said


def _given(param: Any) -> str:
    if param.required:
        return "required"
    value = getattr(param.default, "value", param.default)
    if value is None or value is False or value in ("", [], ()) or callable(value):
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
