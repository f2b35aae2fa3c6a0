"""AUC against the number of labelled patients: from scratch, from a start's features, from own pretraining.

    python benchmarks/labels.py phantom --data DATA --start nsfw-thin-resnet50 --own own.safetensors --out labels.png

`own.safetensors` comes from `medopt pretrain MANIFEST --like STUDY --leave-out STUDY`: all training images, no labels.
Each draw takes so many patients of the splits train and val, the smaller numbers within the larger ones. The test split
scores every network after its last epoch, so nothing is chosen by it. Of a start the linear model on its features is
scored; a fifth of the drawn patients chooses its penalty.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from medopt.config import FineTune, Study
from medopt.config.shipped import study_path
from medopt.config.study_file import load_study
from medopt.core.provenance import machine
from medopt.core.records import Split
from medopt.core.reporter import SilentReporter
from medopt.data.cache import PreparedCache
from medopt.figures.style import COLOURS, figure_page, legend, style_axes
from medopt.pipeline.linear_baselines import start_baseline
from medopt.pipeline.predict import validation_score
from medopt.pipeline.study_cases import StudyCases, read_source
from medopt.training.checkpoint import write_tensors
from medopt.training.hardware import open_fabric
from medopt.training.job import PreparedSplit, TrainingCallbacks, TrainingJob
from medopt.training.loop import fit
from medopt.transforms.prepare import PrepareChain


@dataclass(frozen=True, slots=True)
class Score:
    """The test AUC of one network."""

    way: str
    patients: int
    draw: int
    auc: float


def patients_drawn(labelled: PreparedSplit, first: int, last: int, draw: int) -> PreparedSplit:
    """The images of the patients `first` to `last` of an order that the draw gives."""
    everybody = np.unique([case.patient_id for case in labelled.cases])
    chosen = set(np.random.default_rng(draw).permutation(everybody)[first:last])
    rows = [row for row, case in enumerate(labelled.cases) if case.patient_id in chosen]
    return PreparedSplit([labelled.cases[row] for row in rows], [labelled.files[row] for row in rows])


def score(study: Study, labelled: PreparedSplit, count: int, test: PreparedSplit, *, tunes: bool) -> float:
    """AUC on `test` after the last epoch; of a start that is not tuned, of the linear model on its features."""
    with TemporaryDirectory() as folder:
        everything = patients_drawn(labelled, 0, count, study.seed)
        job = TrainingJob(study, everything, test, Path(folder), {})
        if study.model.has_start:
            kept = count - count // 5
            splits: dict[Split, PreparedSplit] = {
                "train": patients_drawn(labelled, 0, kept, study.seed),
                "val": patients_drawn(labelled, kept, count, study.seed),
                "test": test,
            }
            baseline, network, _ = start_baseline(
                study, splits, ("train", "val", "test"), SilentReporter(), Path("runs")
            )
            if not tunes:
                table = baseline.predictions(study, splits, ["test"])
                return float(roc_auc_score(table.labels, table.logits[:, 0]))
            weights = Path(folder) / "start.safetensors"
            write_tensors(weights, network.state_dict(), {})
            job = replace(job, start=weights, tunes_start=True)
        trained = fit(job, open_fabric(study.training), TrainingCallbacks(validation_score(study, test)))
    return trained.history[-1].val_metric


def splits_of(source: StudyCases, files: Sequence[Path]) -> tuple[PreparedSplit, PreparedSplit]:
    """The labelled images, train and val, and those of the test split."""
    tested = [case.split == "test" for case in source.cases]
    both = []
    for wanted in (False, True):
        rows = [row for row, is_test in enumerate(tested) if is_test is wanted]
        both.append(PreparedSplit([source.cases[row] for row in rows], [files[row] for row in rows]))
    return both[0], both[1]


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval over the draws (t; 0 of a single draw)."""
    if len(values) < 2:
        return float(np.mean(values)), 0.0
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def draw_scores(path: Path, scores: Sequence[Score], counts: Sequence[int], title: str) -> None:
    """The picture: a line a way, with the interval over the draws."""
    with figure_page(path, 1, title, caption="mean of the draws of patients, with its 95 % interval") as (axes,):
        for colour, way in zip(COLOURS, dict.fromkeys(each.way for each in scores), strict=False):
            found = [mean_and_interval([s.auc for s in scores if (s.way, s.patients) == (way, n)]) for n in counts]
            middle, half = zip(*found, strict=True)
            axes.errorbar(counts, middle, half, color=colour, marker="o", capsize=3, label=way)
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        style_axes(axes, "labelled patients", "test AUC")
        legend(axes, "best")


def studies(arguments: argparse.Namespace) -> Iterator[tuple[str, Study, bool]]:
    """What is compared: its name, its study, and whether the start is tuned."""
    path, given = study_path(Path(arguments.study)), arguments.set
    yield "scratch", load_study(path, given), False
    for name, start, size in (("start", arguments.start, arguments.start_size), ("own pretraining", arguments.own, 0)):
        if start:
            sized = [f"prepare.size=[{size},{size}]"] if size else []
            study = load_study(path, [f"model={{start: {start}}}", *sized, *given])
            yield f"features of {Path(start).stem}" if name == "start" else f"features, {name}", study, False
            if name != "start":
                tuned = study.training.model_copy(update={"fine_tune": FineTune()})
                yield f"tuned, {name}", study.model_copy(update={"training": tuned}), True


def main() -> None:
    """Train, print a line a network and a table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--start", default="")
    parser.add_argument("--start-size", type=int, default=224)
    parser.add_argument("--own", default="")
    parser.add_argument("--patients", type=int, nargs="+", default=[60, 150, 400])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("labels.png"))
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    path, scores = study_path(Path(arguments.study)), []
    for way, given, tunes in studies(arguments):
        source = read_source(given, path, arguments.data)
        files = PreparedCache(arguments.cache, PrepareChain(given.prepare)).fill(
            source.cases, source.root, SilentReporter()
        )
        labelled, test = splits_of(source, files)
        for draw in range(arguments.draws):
            for count in arguments.patients:
                study = source.study.model_copy(update={"seed": draw})
                auc = score(study, labelled, count, test, tunes=tunes)
                scores.append(Score(way, count, draw, auc))
                print(json.dumps({"way": way, "patients": count, "draw": draw, "auc": round(auc, 4)}), flush=True)
    for way in dict.fromkeys(each.way for each in scores):
        for count in arguments.patients:
            middle, half = mean_and_interval([s.auc for s in scores if (s.way, s.patients) == (way, count)])
            print(f"{way:30} {count:5} patients  {middle:.3f} +- {half:.3f}")
    draw_scores(arguments.out, scores, arguments.patients, f"{source.study.name}: AUC against labelled patients")
    print(machine())


if __name__ == "__main__":
    main()
