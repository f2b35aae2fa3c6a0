"""What a person sees: stages, bars with a rate and the time left, and tables. Everything else stays silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from medopt.core.format import amount_text, format_amount, format_difference, format_estimate, unit_text
from medopt.core.records import KINDS
from medopt.manifest.findings import ACCEPTED
from medopt.metrics.figures import HEADLINE
from medopt.metrics.thresholds import MEDIAN

if TYPE_CHECKING:  # a command that only reads headers does not wait for the engines
    from medopt.evaluation.analysis_results import ShortcutsResult
    from medopt.evaluation.run_metrics import RunMetrics
    from medopt.metrics.number_figures import NumberFigures
    from medopt.pipeline.finished_run import FinishedRun
    from medopt.release.predictor import Release
    from medopt.serving.prediction_table import Row

WIDE = 180
TONES = {"good": "bold green", "unsure": "bold yellow", "bad": "bold red"}


def plain_console() -> Console:
    """For tables and text as they are: as wide as the terminal, or wide enough for a table in a file."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=WIDE)


class ConsoleReporter:
    """Stages as lines and bars on stderr, so that stdout holds results only."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
        self._progress: Progress | None = None
        self._started = 0.0

    def stage(self, name: str, note: str) -> None:
        """A stage begins, or is skipped."""
        self._close()
        self.console.print(Text(f"{name:<11}", "bold cyan") + Text(note, "dim"), soft_wrap=True)

    def message(self, text: str) -> None:
        """One line, not broken where it is long."""
        self.console.print(Text(f"  {text}", "dim"), soft_wrap=True)

    def progress(self, total: int, what: str) -> Callable[..., None]:
        """A bar with count, rate, time left and the fields given to advance; it goes when it is full."""
        self._close()
        bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,  # a log file takes no bars, and would keep their empty lines
        )
        task = bar.add_task(what, total=total, rate="", note="")
        bar.start()
        self._progress = bar

        def advance(n: int = 1, **fields: object) -> None:
            note = " ".join(f"{key} {value}" for key, value in fields.items())
            bar.update(task, advance=n, note=note)
            current = bar.tasks[0]
            rate = current.finished_speed or current.speed
            bar.update(task, rate=f"{rate:.0f}/s" if rate else "")
            if current.finished:
                bar.stop()

        return advance

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    close = _close


def print_summary(run: FinishedRun, name: str = "") -> None:
    """The end of a run: the verdicts, float and int8 side by side, then what to try next. `name`: else its seed."""
    from medopt.evaluation.verdict_lines import verdict_lines

    console, metrics, gate = plain_console(), run.metrics, run.metrics.gate
    for line in verdict_lines(metrics, gate):
        detail = f": {line.detail}" if line.detail else ""
        console.print(Text.assemble((line.head, TONES[line.tone]), detail), soft_wrap=True)
    if shifted := gate.figures.chosen.shifted:
        console.print(shifted.sentence, soft_wrap=True)
    console.print(_performance_table(metrics, name or f"seed {metrics.seed}"))
    if metrics.kept:
        console.print(metrics.kept.sentence, soft_wrap=True)
    console.print("seconds  " + ", ".join(f"{stage} {value:.0f}" for stage, value in run.seconds.items()))
    console.print(f"run      {run.folder}\nMLflow   {run.mlflow_link}", soft_wrap=True)
    if not metrics.is_released:
        return
    console.print(Text("\nNext:", "bold"))
    folder, release = quote(str(run.folder)), quote(str(run.folder / "release"))
    for command, what in (
        (f"medopt report {folder}", "does it work, for whom not, how sure, what int8 changed"),
        (f"medopt verify {release}", "replay the release's golden cases"),
        (f"medopt predict {release} PATH...", "predict DICOM, NIfTI or image files"),
        (f"medopt ui --runs {quote(str(runs_of(run.folder)))}", "review the run in MLflow"),
    ):
        console.print(f"  {command}", Text(f"  # {what}", "dim"), soft_wrap=True)


def _performance_table(metrics: RunMetrics, name: str) -> Table:
    """Both models on the test split, and what int8 changes."""
    level, cases = f"{100 * metrics.confidence:g} % interval", metrics.test.int8.auc.n
    title = f"{metrics.study}, {name}: {cases} cases of the test split ({level})"
    caption = caption_of(metrics.data_notes)
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("")
    for kind in KINDS:
        table.add_column(f"{kind} ({metrics.engine[kind]})", justify="right")
    for figure in HEADLINE:
        table.add_row(figure.replace("_", " "), *(format_estimate(metrics.test[kind][figure]) for kind in KINDS))
    for row in _further_rows(metrics).items():
        table.add_row(row[0], *row[1])
    for one in metrics.baselines.models.values() if metrics.baselines else ():
        table.add_row(f"auc over {one.title}", format_difference(one.gain), "")
    if len(metrics.sites) > 1:
        for site, figures in metrics.sites.items():
            table.add_row(f"auc at {site}", *(format_estimate(figures[kind].auc) for kind in KINDS))
    times = metrics.served_ms
    table.add_row("time for an image", *(f"{times[kind]:.2f} ms" for kind in KINDS))
    table.add_row("auc, int8 less float", "", format_difference(metrics.int8_on_test.auc_difference))
    table.add_row("speed over float", "", f"{times.float / times.int8:.1f}x")
    table.add_row("size", *(f"{metrics.size_bytes[kind] / 1e6:.2f} MB" for kind in KINDS))
    return table


def _further_rows(metrics: RunMetrics) -> dict[str, list[str]]:
    """Figures of a number or of grades, of both models."""
    if number := metrics.number:
        unit = unit_text(number.float.unit)
        return {
            f"mean absolute error{unit}": [format_amount(number[kind].mae) for kind in KINDS],
            f"limits of agreement{unit}": [agreement_text(number[kind]) for kind in KINDS],
            "R2": [format_estimate(number[kind].r2) for kind in KINDS],
        }
    if grades := metrics.grades:
        return {
            "weighted kappa": [format_estimate(grades[kind].kappa) for kind in KINDS],
            "grades off on average": [format_estimate(grades[kind].distance) for kind in KINDS],
        }
    return {}


def agreement_text(figures: NumberFigures) -> str:
    """Bland and Altman's limits."""
    ends = [one.value for one in (figures.lower, figures.upper)]
    return " to ".join("not defined" if end is None else amount_text(end) for end in ends)


def runs_of(folder: Path) -> Path:
    """The runs folder that a run stands in: two above, or three for one that stands in another's folder."""
    return folder.parents[2] if folder.name in ("ensemble", "compressed") else folder.parents[1]


def caption_of(notes: Sequence[str]) -> str | None:
    """What the study accepted of its data, in a line each: it belongs to every score of the table."""
    parted = [note.split(": ", 2) for note in notes if f", {ACCEPTED}: " in note]
    return "\n".join(": ".join(parts[:2]) for parts in parted) or None


def print_predictions(rows: Sequence[Row], predictor: Release, most: int = 40) -> None:
    """A table of answers and how they were decided; why a scan was refused stands in the CSV and in the error."""
    labels, model = predictor.info.labels, predictor.info.models[predictor.kind]
    scale = predictor.info.number
    table = Table("scan", "decision", *labels, *([scale.quantity] if scale else []))
    for row in rows[:most]:
        if row.answer is None:
            table.add_row(row.path, Text("refused", "red"))
        elif row.answer.declined:
            table.add_row(row.path, Text("declined", "yellow"))
        else:
            values = [f"{row.answer.probabilities[label]:.3f}" for label in labels]
            numbers = [row.answer.number.text] if row.answer.number else []
            table.add_row(row.path, row.answer.decision, *values, *numbers)
    console = plain_console()
    console.print(table)
    if len(rows) > most:
        console.print(f"and {len(rows) - most} more in the CSV")
    declined = [row.answer.declined for row in rows if row.answer is not None and row.answer.declined]
    if declined:
        text = f"declined {len(declined)} of {len(rows)}, because (the first): {declined[0]}; the CSV says of each"
        console.print(text, soft_wrap=True)
    limits = model.threshold if isinstance(model.threshold, tuple) else (model.threshold,)
    rules = [f"{name} from {limit:.4f} on" for name, limit in zip(labels[-len(limits) :], limits, strict=True) if limit]
    rule = ", ".join(rules) or ("the median grade" if model.rule == MEDIAN else "the most probable label")
    band = f"; left undecided: from {model.band[0]:.4f} up to {model.band[1]:.4f}" if model.band else ""
    console.print(f"{predictor.kind} model in {predictor.engine.name}; decided: {rule}{band}", soft_wrap=True)
    if model.sets:
        console.print(" ".join(filter(None, (model.sets.promise, model.sets.note))), soft_wrap=True)


def print_shortcuts(result: ShortcutsResult) -> None:
    """How far size, padding, brightness and header of the images alone tell the label."""
    if not result.looks:
        plain_console().print(f"shortcuts: {result.patients} patients with images are too few to look for them")
        return
    title = (
        f"Shortcuts: what predicts the label without the image; {result.images} images of {result.patients} patients"
    )
    table = Table("fact about the image", "AUC alone", f"corrected for {len(result.looks)} looks", "", title=title)
    for one in result.looks:
        mark = Text("shortcut", "bold yellow") if one.is_shortcut else ""
        table.add_row(one.name, format_estimate(one.auc), format_estimate(one.corrected), mark)
    plain_console().print(table)


def print_rows(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Any list of equal mappings as a table."""
    table = Table(*(str(key) for key in rows[0]), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    plain_console().print(table)
