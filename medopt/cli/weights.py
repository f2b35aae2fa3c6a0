"""`medopt weights`: the starts that a study can name, where they come from, and what of them fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medopt.cli.command import note, print_json, reporting
from medopt.cli.options import JsonOption
from medopt.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from medopt.models.starts.catalogue import Entry
    from medopt.models.starts.opening import OpenedStart
    from medopt.models.starts.start import LoadedStart, Scaling, Start, TensorFate

Variant = Literal["v1", "caffe", "v1.5", "d", "dilated", "pooled"]
Stem = Literal["small", "medium", "large", "deep", "full", "slices"]
Use = Literal["research", "clinical"]
StartArgument = Annotated[
    str,
    typer.Argument(metavar="NAME|FILE", help="A name of `medopt weights list`, or a file: .safetensors, .pth, .onnx."),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name of `medopt weights list`.")]
FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="Weights of a bottleneck ResNet: .safetensors, .onnx, or .pt and .pth of tensors alone. A pickle that "
        "holds more is refused, and nothing of it runs.",
    ),
]


def list_starts(as_json: JsonOption = False) -> None:
    """List the starts that `model.start` of a study can name, and which of them lie on this disk.

    They lie in MEDOPT_WEIGHTS, else in ~/.cache/medopt/weights; no network is asked.

    Example: medopt weights list
    """
    from rich.table import Table

    from medopt.cli.console import plain_console
    from medopt.models.starts.catalogue import entries, local_file, weights_folder

    table = Table("name", "title", "input", "licence", "on this disk")
    known = entries()
    for entry in known:
        table.add_row(entry.name, entry.title, _input(entry), entry.licence, "yes" if local_file(entry) else "no")
    plain_console().print(table)
    note(
        f"folder of weights: {weights_folder()}. `medopt weights fetch NAME` gets one, `medopt weights show` says more."
    )
    print_json(as_json, {"folder": str(weights_folder()), "starts": [_facts(entry) for entry in known]})


def show(
    start: StartArgument,
    channels: Annotated[int, typer.Option("--channels", min=1, help="Channels of the study's images.")] = 1,
    dims: Annotated[
        Literal["2", "3"] | None, typer.Option("--dims", help="2: images, 3: volumes; else as the start was trained.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Each tensor in a row of its own, not grouped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a start: its architecture, scale and licence, and what becomes of each of its tensors in a study's network.

    taken: as it is; adapted: to the study's channels, depth or stem; left out: no layer needs it; new: drawn.

    Example: medopt weights show resnet50.pth --channels 3
    """
    from medopt.models.starts.catalogue import entry_of, local_file, where_from

    entry = entry_of(start)
    facts = _facts(entry) if entry else {}
    if entry and local_file(entry) is None:
        _print_facts(facts)
        typer.echo(f"\nNot on this disk. {where_from(entry)}")
        print_json(as_json, facts)
        return
    opened, fitted = _fitted(start, channels, int(dims) if dims else None)
    facts |= _architecture(opened)
    _print_facts(facts)
    rows = _rows(fitted, every)
    what = "image" if opened.start.spatial_dims == 2 and dims != "3" else "volume"
    _print_rows(
        rows,
        f"In a network for {what}s of {channels} channel(s): {100 * fitted.share:.1f} % of the weights are the start's",
    )
    print_json(as_json, {**facts, "share": fitted.share, "tensors": rows})


def fetch(name: NameArgument, as_json: JsonOption = False) -> None:
    """Download a start into the folder of weights, and check it against what is published of its SHA-256.

    Where the address cannot be reached, the error says which file to put where.

    Example: medopt weights fetch imagenet-resnet50
    """
    from medopt.models.starts.catalogue import entries, entry_of
    from medopt.models.starts.fetching import fetch_start

    entry = entry_of(name)
    if entry is None:
        raise ConfigError(f"There is no start {name} in the catalogue ({', '.join(each.name for each in entries())}).")
    with reporting() as reporter:
        path = fetch_start(entry, reporter)
    note(f"licence: {entry.licence}; trained on {entry.trained_on}")
    typer.echo(path)
    print_json(as_json, {"name": name, "file": str(path), "licence": entry.licence})


def import_file(
    file: FileArgument,
    name: Annotated[str, typer.Option("--name", help="What studies will call it: small letters, digits and - . _")],
    licence: Annotated[str, typer.Option("--licence", help="Its licence, as in Apache-2.0 or 'our own'.")],
    trained_on: Annotated[
        str, typer.Option("--trained-on", help="The images that it was trained on: reports and model cards show it.")
    ],
    allows: Annotated[
        Use,
        typer.Option("--allows", help="What the licence allows a model for; clinical: research and patients' care."),
    ] = "research",
    title: Annotated[str, typer.Option("--title", help="One line for the list.")] = "",
    citation: Annotated[str, typer.Option("--citation", help="Whom to cite.")] = "",
    variant: Annotated[
        Variant | None,
        typer.Option("--variant", help="Where strides sit, which keys do not tell: v1, v1.5, caffe or dilated; d."),
    ] = None,
    stem: Annotated[
        Stem | None, typer.Option("--stem", help="The first layers, where keys do not tell; full: 7x7 of stride 1.")
    ] = None,
    mean: Annotated[
        str, typer.Option("--mean", help="Of the images in training, a number a channel: 0.485,0.456,0.406")
    ] = "",
    std: Annotated[str, typer.Option("--std", help="Their standard deviation, a number a channel.")] = "",
    high: Annotated[float, typer.Option("--high", help="White before the mean went off: 1 or 255.")] = 1.0,
    order: Annotated[Literal["rgb", "bgr"], typer.Option("--order", help="Of the channels.")] = "rgb",
    as_json: JsonOption = False,
) -> None:
    """Put weights of your own into the folder of weights, with what no file says, so that a study can name them.

    Example: medopt weights import ours.pth --name ours --licence 'our own' --trained-on '2 million radiographs'
    """
    from medopt.core.files import write_text
    from medopt.data.images_seen import SEEN_FILE, encode_seen, images_seen
    from medopt.models.starts.catalogue import local_file
    from medopt.models.starts.importing import Provenance, import_start

    uses: tuple[Use, ...] = ("research", "clinical") if allows == "clinical" else ("research",)
    scaling = _scaling(mean, std, high, order)
    said = Provenance(licence, trained_on, uses, title, citation, variant or "", stem or "", scaling)
    seen = images_seen(file)
    entry = import_start(file, name, said)
    if seen and (kept := local_file(entry)):
        write_text(kept.with_name(SEEN_FILE), encode_seen(seen))
    note(f"A study takes it with model.start: {name}. `medopt weights show {name}` shows what of it fits.")
    typer.echo(local_file(entry))
    print_json(as_json, _facts(entry))


def convert(
    start: StartArgument,
    out: Annotated[Path, typer.Option("--out", help="The file to write: start.safetensors")],
    as_json: JsonOption = False,
) -> None:
    """Write a start by medopt's names as safetensors, the scale of its images in it: no pickle, any layout.

    Example: medopt weights convert resnet50.pth --out start.safetensors
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: a converted start is a .safetensors file.")
    from medopt.core.files import file_digest
    from medopt.data.images_seen import SEEN, encode_seen, images_seen
    from medopt.models.starts.catalogue import local_file
    from medopt.models.starts.files import write_start
    from medopt.models.starts.opening import open_start

    opened = open_start(start, Path())
    entry = opened.entry
    facts = {"from": entry.name if entry else Path(opened.name).name, "sha256_of_it": opened.digest}
    if entry:
        facts |= {"licence": entry.licence, "trained_on": entry.trained_on, "citation": entry.citation}
    file = local_file(entry) if entry else Path(opened.name)
    seen = images_seen(file) if file else frozenset()
    write_start(out, opened.start, (facts | ({SEEN: encode_seen(seen)} if seen else {})).items())
    if opened.start.assumed:
        note(f"assumed: {opened.start.assumed}")
    typer.echo(out)
    print_json(as_json, {"file": str(out), "sha256": file_digest(out), **facts, **_described(opened.start)})


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_starts,
    "show": show,
    "fetch": fetch,
    "import": import_file,
    "convert": convert,
}


def _scaling(mean: str, std: str, high: float, order: Literal["rgb", "bgr"]) -> Scaling | None:
    from medopt.models.starts.start import Scaling

    if not mean and not std:
        return None
    try:
        means, stds = (tuple(float(word) for word in text.split(",")) for text in (mean, std))
    except ValueError:
        raise ConfigError(f"--mean {mean} --std {std}: give both, a number a channel, as in 0.5,0.5,0.5.") from None
    if len(means) != len(stds) or min(stds) <= 0:
        raise ConfigError(f"--mean {mean} --std {std}: give one mean and one std over 0 for each channel.")
    return Scaling(means, stds, high, order)


def _input(entry: Entry) -> str:
    size = " x ".join(map(str, entry.size)) or "any"
    return f"{entry.spatial_dims}-D, {entry.channels} channel{'s' if entry.channels > 1 else ''}, {size}"


def _facts(entry: Entry) -> dict[str, Any]:
    from medopt.models.starts.catalogue import digest_in_words, local_file

    path = local_file(entry)
    return {
        "name": entry.name,
        "title": entry.title,
        "input": _input(entry),
        "licence": entry.licence,
        "allows": list(entry.allows),
        "trained_on": entry.trained_on,
        "note": entry.note,
        "citation": entry.citation,
        "address": entry.address or " ".join(entry.packages),
        "digest": digest_in_words(entry),
        "on_disk": str(path) if path else None,
    }


def _architecture(opened: OpenedStart) -> dict[str, Any]:
    return {**_described(opened.start), "sha256": opened.digest}


def _described(start: Start) -> dict[str, Any]:
    scaling = start.scaling
    order = "" if scaling is None or start.channels == 1 else f", {scaling.order}"
    scale = f"(x * {scaling.high:g} - {_numbers(scaling.mean)}) / {_numbers(scaling.std)}{order}" if scaling else None
    return {
        "layout": start.layout,
        "architecture": start.architecture() | {"spatial_dims": start.spatial_dims, "channels": start.channels},
        "scale": scale,
        "assumed": start.assumed,
    }


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]" if len(values) > 1 else f"{values[0]:.4g}"


def _fitted(name: str, channels: int, dims: int | None) -> tuple[OpenedStart, LoadedStart]:
    """The start in a study's network; parts that do not fit are shown, not refused."""
    from medopt.models import build_resnet
    from medopt.models.starts.adapt import fit_start, scaled_channels
    from medopt.models.starts.opening import open_start

    opened = open_start(name, Path())
    start = opened.start
    network = build_resnet(
        **start.architecture(), spatial_dims=dims or start.spatial_dims, channels=channels,
        scaled_channels=scaled_channels(start, channels),
    )  # fmt: skip
    return opened, fit_start(start, network, name, partial=True)


def _rows(fitted: LoadedStart, every: bool) -> list[dict[str, Any]]:
    from medopt.models.starts.start import grouped

    if every:
        return [_row(fate) for fate in fitted.fates]
    return [
        {"part": group.part, "fate": group.fate, "tensors": group.tensors, "numbers": group.numbers, "how": group.how}
        for group in grouped(fitted.fates)
    ]


def _row(fate: TensorFate) -> dict[str, Any]:
    shape = " x ".join(map(str, fate.shape))
    return {"tensor": fate.name, "fate": fate.fate, "shape": shape, "how": fate.how}


def _print_facts(facts: dict[str, Any]) -> None:
    from medopt.cli.console import plain_console

    console = plain_console()
    for key, value in facts.items():
        if value not in ("", None, []):
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            shown = ", ".join(value) if isinstance(value, list) else shown
            console.print(f"{key.replace('_', ' '):<13} {shown}", soft_wrap=True)


def _print_rows(rows: list[dict[str, Any]], title: str) -> None:
    from medopt.cli.console import print_rows

    typer.echo("")
    print_rows(title, [{key: f"{v:,}" if isinstance(v, int) else v for key, v in row.items()} for row in rows])
