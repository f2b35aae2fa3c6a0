"""The first page says each thing once."""

from __future__ import annotations

from types import SimpleNamespace

from medopt.core.records import Estimate
from medopt.report.key_questions import _brought


def run_with(*remarks: str) -> SimpleNamespace:
    auc = Estimate(0.9, 0.8, 0.95, 60)
    baseline = SimpleNamespace(title="a linear model on thumbnails", gain=Estimate(-0.1, -0.2, -0.01, 60))
    metrics = SimpleNamespace(
        baselines=SimpleNamespace(linear_goes_on=False, models={"thumbnails": baseline}),
        verdict=SimpleNamespace(better_than_chance=True, remarks=remarks),
        test={"int8": SimpleNamespace(auc=auc)},
    )
    return SimpleNamespace(metrics=metrics, served="int8")


def test_what_training_brought_is_not_repeated_after_the_verdicts_remark() -> None:
    (line,) = _brought(run_with())  # type: ignore[arg-type]
    assert line.startswith("The float network's AUC differs by -0.1") and "against a linear model on thumbnails" in line
    remark = "the float network is worse than a linear model on thumbnails: AUC -0.100"
    assert list(_brought(run_with(remark))) == []  # type: ignore[arg-type]
