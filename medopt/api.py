"""What the command line does, as functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medopt.config.study_file import data_folder, load_study
from medopt.core.records import Override
from medopt.core.reporter import Reporter, SilentReporter
from medopt.pipeline.finished_run import FinishedRun
from medopt.pipeline.run import run_study


def run(
    study: str | Path,
    *,
    data: str | Path | None = None,
    runs: str | Path = "runs",
    overrides: Sequence[str] = (),
    fresh: bool = False,
    override: tuple[str, str] | None = None,
    reporter: Reporter | None = None,
) -> FinishedRun:
    """Run a study: prepare, train, compress, judge, evaluate, release, report; what `medopt run` does.

    The same call goes on with a run that was interrupted, and returns at once where everything is done. Returns the
    run's figures as `metrics` (`metrics.test.int8.auc` is an Estimate: value, low, high, n), its `folder`, and its
    `release` folder, which is None if a verdict did not pass the model.

    Args:
        study: path of a study file (YAML).
        data: the data folder below which the study's `data.root` lies; None: MEDOPT_DATA, else ./data.
        runs: folder for the runs, the prepared images and MLflow's store.
        overrides: settings laid over the file's, as in `["training.epochs=3"]`.
        fresh: begin a new run even where there is one of the same study and data.
        override: (name, reason) of who releases a model that a verdict did not pass; the card begins with both.
        reporter: hears of stages, messages and progress (`medopt.core.reporter.Reporter`); None: silence.

    Raises ConfigError, DataError, TrainingError: the `MedoptError` of the stage that refused.

    >>> import medopt
    >>> from pathlib import Path
    >>> _ = medopt.draw_study("phantom-data/phantom", patients=30)
    >>> _ = Path("nodules.yaml").write_text('''
    ... name: nodules
    ... question: Is there a nodule?
    ... data: {manifest: phantom/manifest.csv, root: phantom, labels: [no_nodule, nodule]}
    ... prepare: {size: [32, 32]}
    ... training: {epochs: 2}  # too few to learn anything
    ... evaluation: {bootstrap: 200, shift_cases: 0, explain: 0}
    ... compression: {gate: {max_decision_flips: 1, max_probability_shift: 1, auc_margin: 1, min_speedup: 0}}
    ... ''')
    >>> finished = medopt.run("nodules.yaml", data="phantom-data", override=("A. Reader", "an example"))
    >>> finished.metrics.test.int8.auc.n, finished.folder.parent.as_posix(), finished.release.name
    (12, 'runs/nodules', 'release')
    """
    path = Path(study)
    given = None if data is None else Path(data)
    settings = load_study(path, list(overrides))
    answers = Override.now(*override) if override else None
    heard = reporter or SilentReporter()
    return run_study(settings, path, data_folder(given), Path(runs), heard, fresh=fresh, override=answers)
