"""The verdict on the model itself, which is not the gate's: is it shown to be better than chance?

It is read from the test split, whose predictions no choice has seen: on validation the kept epoch, the threshold and
the calibration flatter a useless model. The limit is chance and no setting, so that nothing is chosen by the test
split; a refused model is no reason to look for another one there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medopt.core.format import format_difference, format_estimate
from medopt.core.records import KINDS, Estimate, has_one_output
from medopt.core.result import ByKind, Result
from medopt.evaluation.analysis_results import BaselinesResult
from medopt.metrics.calibrated_predictions import CalibratedPredictions

CHANCE = 0.5
THUMBNAIL, COVARIATES = "thumbnail", "covariates"
NOT_SHOWN = "not shown to be better than chance"


class ModelVerdict(Result):
    """What the test split says of the model: `reasons` why it is not shown to be better than chance, none where it is.

    `remarks` are weaknesses that do not stop a release. `chosen` counts the test cases that each label was decided for,
    and `over_linear` is the AUC of the float network less that of a linear model on thumbnails, paired; None where
    there is no such model.
    """

    reasons: tuple[str, ...]
    remarks: tuple[str, ...]
    chosen: ByKind[dict[str, int]]
    over_linear: Estimate | None

    @property
    def better_than_chance(self) -> bool:
        """Whether that is shown, of both models."""
        return not self.reasons

    @property
    def word(self) -> str:
        """In a few words."""
        return "better than chance" if self.better_than_chance else NOT_SHOWN


def judge_model(
    test: ByKind[CalibratedPredictions],
    auc: ByKind[Estimate],
    labels: Sequence[str],
    linear: BaselinesResult | None,
    kappa: ByKind[Estimate] | None = None,
) -> ModelVerdict:
    """Judge both models of a run, as a release serves both. `auc` is theirs on `test`, as `metrics.json` has it.

    Grades are judged by their weighted kappa, which is 0 by chance.
    """
    chosen = ByKind[dict[str, int]](float=_chosen(test.float, labels), int8=_chosen(test.int8, labels))
    constant = [kind for kind in KINDS if _is_constant(test[kind])]
    name, shown, chance = ("AUC", auc, CHANCE) if kappa is None else ("weighted kappa", kappa, 0.0)
    reasons = [f"{kind}: test {name} {_told(shown[kind], chance)}" for kind in KINDS if not _above(shown[kind], chance)]
    for kind in constant:
        answer = ", ".join(label for label, count in chosen[kind].items() if count) or "none of the labels"
        reasons.append(f"{kind}: it answers {answer} for all {len(test[kind].predictions)} test cases")
    remarks = []
    for kind in KINDS:
        never = [label for label, count in chosen[kind].items() if not count]
        if never and kind not in constant:
            remarks.append(f"{kind} never chooses {', '.join(never)} on the test split")
    simple = [linear.models[name] for name in (THUMBNAIL, COVARIATES) if name in linear.models] if linear else []
    for one in simple:
        if one.gain.low is None or one.gain.low <= 0:
            what = "worse than" if one.gain.high is not None and one.gain.high < 0 else "not shown to be better than"
            remarks.append(f"the float network is {what} {one.title}: AUC {format_difference(one.gain)}")
    over = linear.models[THUMBNAIL].gain if linear and THUMBNAIL in linear.models else None
    return ModelVerdict(reasons=tuple(reasons), remarks=tuple(remarks), chosen=chosen, over_linear=over)


def _above(figure: Estimate, chance: float) -> bool:
    return figure.low is not None and figure.low > chance


def _told(figure: Estimate, chance: float) -> str:
    """The figure, and what stands in the way."""
    if figure.low is None or figure.high is None:
        return f"{format_estimate(figure)}{f' ({figure.note})' if figure.note else ''}"
    side = "lies below" if figure.high < chance else "holds"
    return f"{format_estimate(figure)}, whose interval {side} {chance:g}, which is chance"


def _chosen(scored: CalibratedPredictions, labels: Sequence[str]) -> dict[str, int]:
    """How many cases are decided for each label; of a binary study also those decided against the finding."""
    counts = scored.decided.sum(axis=0).tolist()
    if has_one_output(scored.task):
        counts = [len(scored.decided) - counts[0], *counts]
    return dict(zip(labels, counts, strict=True))


def _is_constant(scored: CalibratedPredictions) -> bool:
    decided = scored.decided
    return len(decided) == 0 or bool(np.all(decided == decided[0]))
