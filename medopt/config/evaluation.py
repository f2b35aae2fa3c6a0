"""What is measured, and which scans are declined."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator

from medopt.config.section import Fraction, Positive, Section

ShiftFamily = Literal[
    "noise", "blur", "contrast", "low_resolution", "bias_field", "motion", "compression", "detector"
]  # implemented in medopt.transforms.corrupt


class Guarantee(Section):
    """What the answers promise: a case is left undecided where more than one class is possible, or none."""

    coverage: float = Field(gt=0.5, lt=1)
    """The share of new patients of each class whose images are answered with the class or left undecided. .95 takes 19
    validation patients of each class; one with fewer is never ruled out."""


class Evaluation(Section):
    """Intervals, calibration and the operating point."""

    bootstrap: int = Field(2000, ge=100)
    """Resamples of patients where an interval has no formula."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Level of all intervals."""
    calibration: Literal["logistic", "temperature", "isotonic", "none"] = "logistic"
    """Fitted on validation. logistic: a slope and a bias for each output (from 10 cases of each class on, else the
    temperature). temperature: one number, after the shift that class weights or balanced sampling are known to give is
    subtracted. isotonic: a rising curve; needs 200 validation cases and 50 of each class."""
    operating_point: Literal["youden", "sensitivity", "specificity", "cost", "fixed"] = "youden"
    """How the threshold is chosen on validation. youden: the largest sum of sensitivity and specificity. sensitivity,
    specificity: the target is kept on average by new patients, not by the validation cases alone."""
    target: Fraction = 0.5
    """sensitivity, specificity: the minimum; .95 takes 19 validation cases of the class. fixed: the probability."""
    cost: Positive = 1.0
    """operating_point cost: how many false alarms one miss is worth."""
    prevalence: float | None = Field(None, gt=0, lt=1)
    """Share of patients with the finding where the model will be used: PPV, NPV, net benefit and the operating point
    `cost` refer to it. None: as in the cases."""
    abstain: Annotated[float, Field(ge=0, lt=1)] | Guarantee = 0.0
    """A number is the largest share of validation cases that may stay undecided: those nearest to the threshold; 0 is
    off. {coverage: 0.95} leaves as many undecided as it takes to keep a promise to each class: of 100 new patients of a
    class, at most 5 get another answer (conformal prediction by class, on the outputs of each model)."""
    aggregate: Literal["mean", "max"] = "mean"
    """How the logits of several images of a patient become one."""
    smallest_group: int = Field(10, ge=2)
    """Minimum number of patients of a site or subgroup for which figures are computed."""
    explain: int = Field(12, ge=0, le=60)
    """Maximum number of test cases shown with a Grad-CAM map: the most confident errors, and a sample; 0 is off."""
    nearest: int = Field(0, ge=0, le=10)
    """How many of the nearest training images are drawn beside each error; 0 is off."""
    shift_cases: int = Field(200, ge=0)
    """Maximum number of test cases that are corrupted to measure robustness, drawn by patient; 0 is off."""
    shift_families: list[ShiftFamily] = Field(list(get_args(ShiftFamily)), min_length=1)
    """The kinds of corruption, at five levels each."""

    @field_validator("abstain", mode="before")
    @classmethod
    def _share_or_guarantee(cls, value: Any) -> Any:
        """One sentence instead of what each of the two forms has against the value."""
        if isinstance(value, dict):
            coverage: Any = value.get("coverage")
            is_known = set(value) == {"coverage"} and _is_number(coverage) and 0.5 < coverage < 1
        else:
            is_known = isinstance(value, Guarantee) or (_is_number(value) and 0 <= value < 1)
        if not is_known:
            raise ValueError("it takes a share from 0 to below 1, or {coverage: 0.95}, above 0.5 and below 1")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Domain(Section):
    """The out-of-domain check: scans unlike those of training are declined, with a reason."""

    enabled: bool = True
    """False: the release answers every scan, however strange."""
    false_alarm: float = Field(0.05, gt=0, le=0.5)
    """Share of good scans that may be declined, by which the limits are set on validation."""
    margin: float = Field(1.5, ge=1)
    """The factor by which the size and pixel spacing of a scan may exceed those of the training images."""
