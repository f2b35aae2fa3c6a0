"""What a study leaves to be found before its training: `auto` becomes a number, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medopt.config import Study, Training
from medopt.core.errors import TrainingError
from medopt.core.records import Case
from medopt.core.reporter import Reporter, SilentReporter
from medopt.training.batch_size import find_batch_size
from medopt.training.lr_range_test import range_test

USUAL_BATCH: int = Training.model_fields["batch_size"].default


def resolve_auto(
    study: Study, cases: Sequence[Case], files: Sequence[Path], reporter: Reporter | None = None
) -> tuple[Study, dict[str, Any]]:
    """The study with numbers for `auto`, found on its training `cases`, and what was measured ({} where nothing was).

    First the batch, as the learning rate depends on it. The batch depends on speeds and memory of this machine: a run
    that is to go on later has to keep what was found. Raises TrainingError where nothing suits.
    """
    reporter, facts = reporter or SilentReporter(), {}
    training = study.training
    if "auto" in (training.batch_size, training.micro_batch):
        batch = find_batch_size(study, cases, files, reporter=reporter)
        reporter.message(f"batches of {batch.batch_size}, {batch.micro_batch} at once. {batch.reason}")
        facts["batch"] = batch.json_values()
        micro = batch.micro_batch if training.micro_batch == "auto" else training.micro_batch
        study = _with(study, batch_size=batch.batch_size, micro_batch=micro)
    if training.optimizer.lr == "auto":
        test = range_test(study, cases, files, reporter=reporter)
        if test.suggestion is None:
            raise TrainingError(
                f"training.optimizer.lr is auto. {test.reason} Set a rate: training.optimizer.lr=0.001."
            )
        reporter.message(f"learning rate {test.suggestion:g}: {test.reason}")
        facts["lr"] = test.json_values()
        study = _with(study, optimizer=training.optimizer.model_copy(update={"lr": test.suggestion}))
    return study, facts


def with_sizes(study: Study) -> Study:
    """The study with batch sizes that are numbers, unmeasured: the default where the size is still to be found."""
    training = study.training
    size = USUAL_BATCH if training.batch_size == "auto" else training.batch_size
    return _with(study, batch_size=size, micro_batch=None if training.micro_batch == "auto" else training.micro_batch)


def _with(study: Study, **changed: Any) -> Study:
    return study.model_copy(update={"training": study.training.model_copy(update=changed)})
