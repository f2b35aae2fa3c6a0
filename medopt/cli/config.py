"""`medopt config`: what a key of a study file takes, and the schema by which editors complete."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import print_json
from medopt.cli.options import JsonOption

if TYPE_CHECKING:
    from medopt.config.explain import KeyDescription

NodeOption = Annotated[bool, typer.Option("--node", help="A key of a node file, node.yaml, instead.")]


def explain(
    key: Annotated[
        str, typer.Argument(metavar="[KEY]", help="As in training.schedule; without one: the sections and their keys.")
    ] = "",
    node: NodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a key of a study file takes: its type, choices, default and meaning; of a section all its keys.

    Example: medopt config explain training.schedule
    """
    from medopt.config import Study
    from medopt.config.explain import describe_key, describe_keys

    root: type = Study
    if node:
        from medopt.pacs.settings import NodeSettings

        root = NodeSettings
    keys = describe_key(key, root) if key else tuple(describe_keys(root))
    for one in keys:
        typer.echo(_paragraph(one) if key else f"{one.path}: {one.type}{_default(one)}")
    if not key:
        typer.echo("What a key means: medopt config explain KEY")
    print_json(as_json, {"keys": [asdict(one) for one in keys]})


def schema(
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="File to write; else stdout.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the JSON Schema of a study file, with which an editor completes and checks what you write.

    An editor with YAML's language server reads it where the study file's first line is
    # yaml-language-server: $schema=study.schema.json

    Example: medopt config schema --out study.schema.json
    """
    from medopt.config.explain import study_schema
    from medopt.core.files import write_text

    made = study_schema()
    if out is not None:
        write_text(out, json.dumps(made, indent=2) + "\n")
        typer.echo(f"written to {out}; the first line of a study file: # yaml-language-server: $schema={out}")
    elif not as_json:
        typer.echo(json.dumps(made, indent=2))
    print_json(as_json, made)


def _default(key: KeyDescription) -> str:
    if key.default == "required":
        return " (required)"
    return f" (default {key.default})" if key.default else ""


def _paragraph(key: KeyDescription) -> str:
    return f"{key.path}: {key.type}{_default(key)}" + (f"\n    {key.meaning}" if key.meaning else "")
