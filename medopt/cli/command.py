"""What all commands share: -h, -v and -q, the panels of the help, old spellings, the reporter and the JSON line."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from medopt.core.errors import ConfigError

if TYPE_CHECKING:
    from medopt.cli.console import ConsoleReporter

PANELS = ("Start", "Data", "Train", "Judge", "Ship", "Team")
CONTEXT = {"help_option_names": ["-h", "--help"]}
# Their log lines and warnings may quote what stands in a header.
_NEVER_LOGGED = ("pydicom", "pynetdicom", "highdicom")
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)

VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the libraries' log lines and warnings, too, on stderr.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Results and errors only: no stages, no bars, no hints.")
]


class Group(TyperGroup):
    """Commands in the order of PANELS, those of a panel in the order in which they were added."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, for help and completion."""
        panels = [*PANELS, None]
        return sorted(
            self.commands, key=lambda name: panels.index(getattr(self.commands[name], "rich_help_panel", None))
        )


class Command(TyperCommand):
    """A command that still takes the options of the version before, with a hint."""

    old_spellings: dict[str, str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give old options their new names before they are read."""
        args, hints = renamed(args, self.old_spellings)
        for hint in hints:
            typer.echo(f"{ctx.command_path}: {hint}; the old spelling works for one more version.", err=True)
        return super().parse_args(ctx, args)


def renamed(args: Sequence[str], old_spellings: dict[str, str]) -> tuple[list[str], list[str]]:
    """Arguments with old options renamed, and a hint for each; an old `--json FILE` is not today's flag `--json`.

    >>> renamed(["study.yaml", "--engine=ray"], {"--engine": "--on"})
    (['study.yaml', '--on=ray'], ['--engine is now --on'])
    >>> renamed(["run", "--json", "all.json"], {"--json FILE": "--out"})
    (['run', '--out', 'all.json'], ['--json FILE is now --out'])
    """
    end = args.index("--") if "--" in args else len(args)
    words, hints = list(args), []
    for place, word in enumerate(args[:end]):
        option, equals, value = word.partition("=")
        old = option
        if f"{option} FILE" in old_spellings:
            file = value if equals else (args[place + 1] if place + 1 < end else "")
            old = f"{option} FILE" if file.endswith(".json") else option
        if old in old_spellings:
            words[place] = old_spellings[old] + equals + value
            hints.append(f"{old} is now {old_spellings[old]}")
    return words, list(dict.fromkeys(hints))


def add(
    app: typer.Typer,
    function: Callable[..., None],
    name: str,
    panel: str | None = None,
    old: dict[str, str] | None = None,
    *,
    hidden: bool = False,
) -> None:
    """Add a command to an app; `old` are options of the version before and what they are called now."""
    cls = type("Command", (Command,), {"old_spellings": old or {}})
    register = app.command(name, cls=cls, context_settings=CONTEXT, rich_help_panel=panel, hidden=hidden)
    register(_with_common_options(function))


def _with_common_options(function: Callable[..., None]) -> Callable[..., None]:
    """The same command, with -v and -q, which may stand before or after its name."""

    @functools.wraps(function)
    def command(*args: Any, verbose: bool, quiet: bool, **options: Any) -> None:
        set_verbosity(verbose, quiet)
        function(*args, **options)

    hints = get_type_hints(function, include_extras=True) | {"verbose": VerboseOption, "quiet": QuietOption}
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [one.replace(annotation=hints[name]) for name, one in inspect.signature(function).parameters.items()]
    common = [inspect.Parameter(name, keyword, default=False, annotation=hints[name]) for name in ("verbose", "quiet")]
    command.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    command.__annotations__ = hints
    return command


def reset_verbosity() -> None:
    """As it is without -v and -q: libraries say nothing of what is deprecated in them."""
    _quiet.set(False)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    warnings.filterwarnings("ignore", module=r"PIL\b")  # without the name of a file
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # as well


def set_verbosity(verbose: bool, quiet: bool) -> None:
    """Take -v or -q; raises ConfigError for both."""
    if verbose and quiet:
        raise ConfigError("-v shows more and -q shows less: give one of them.")
    if quiet:
        _quiet.set(True)
    if verbose:
        warnings.resetwarnings()
        logging.getLogger("nibabel.global").setLevel(logging.NOTSET)
        warnings.filterwarnings("ignore", module=r"(pydicom|pynetdicom|highdicom)\b")
        logging.basicConfig(
            level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s"
        )
        for name in _NEVER_LOGGED:
            logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def reporting() -> Iterator[ConsoleReporter]:
    """Stages and bars on stderr, silent with -q; whatever is drawn is closed at the end."""
    from medopt.cli.console import ConsoleReporter

    reporter = ConsoleReporter(quiet=_quiet.get())
    try:
        yield reporter
    finally:
        reporter.close()


def note(text: str) -> None:
    """One line on stderr, unless -q."""
    if not _quiet.get():
        typer.echo(text, err=True)


def print_json(as_json: bool, result: Any) -> None:
    """With --json the last line of stdout: one object. Numbers that are not finite are null."""
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False, default=str))


def outputs(paths: Iterable[Path], kinds: dict[str, str]) -> dict[str, Path]:
    """The files of a repeatable --out by their suffix; `kinds` says what each suffix is, as {".png": "the picture"}.

    Raises ConfigError for another suffix, and for two files of one kind.

    >>> outputs([Path("a.csv")], {".csv": "the table", ".png": "the picture"})
    {'.csv': PosixPath('a.csv')}
    """
    by_suffix: dict[str, Path] = {}
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in kinds:
            known = ", ".join(f"{ending} ({what})" for ending, what in kinds.items())
            raise ConfigError(f"--out {path}: the file's ending says what is written: {known}.")
        if suffix in by_suffix:
            raise ConfigError(f"--out names two files for {kinds[suffix]}: {by_suffix[suffix]} and {path}.")
        by_suffix[suffix] = path
    return by_suffix


def debugging() -> bool:
    """Whether --debug was given, or MEDOPT_DEBUG is set."""
    return bool(os.environ.get("MEDOPT_DEBUG"))
