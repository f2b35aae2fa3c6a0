"""What is measured, what the compressed model must keep, and which scans are declined."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from medopt.config.section import Fraction, Positive, Section

ShiftFamily = Literal[
    "noise", "blur", "contrast", "low_resolution", "bias_field", "motion", "compression", "detector"
]  # medopt.transforms.corrupt makes them


class Evaluation(Section):
    """Intervals, calibration and the operating point."""

    bootstrap: int = Field(2000, ge=100)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    calibration: Literal["temperature", "isotonic", "none"] = "temperature"
    """Fitted on validation. isotonic: a rising curve; needs 200 validation cases and 50 of each class."""
    operating_point: Literal["youden", "sensitivity", "specificity", "cost", "fixed"] = "youden"
    target: Fraction = 0.5
    """sensitivity, specificity: the least wanted on validation; fixed: the probability itself."""
    cost: Positive = 1.0
    """operating_point cost: how many false alarms one miss is worth."""
    prevalence: float | None = Field(None, gt=0, lt=1)
    """Share of patients with the finding where the model is to be used: PPV, NPV, net benefit and the operating point
    cost hold there. None: as in the cases themselves."""
    abstain: float = Field(0.0, ge=0, lt=1)
    """Largest share of validation cases that may be left undecided: those nearest to the threshold. 0 is off."""
    aggregate: Literal["mean", "max"] = "mean"
    """How the logits of a patient's images become the patient's, where a patient has several."""
    smallest_group: int = Field(10, ge=2)
    """Fewest patients of a site or subgroup for which figures are given."""
    explain: int = Field(12, ge=0, le=60)
    """Most test cases shown with a map of where the network looked: the surest errors, and a sample; 0 is off."""
    nearest: int = Field(0, ge=0, le=10)
    """How many training images nearest to each shown error are drawn beside it; 0 is off."""
    shift_cases: int = Field(200, ge=0)
    """Most test cases that are made worse to measure robustness, drawn by patient; 0 is off."""
    shift_families: list[ShiftFamily] = Field(list(get_args(ShiftFamily)), min_length=1)
    """In which ways they are made worse, at five levels each."""


class Domain(Section):
    """The gate before the answer: scans unlike those of training are declined, with a reason."""

    enabled: bool = True
    false_alarm: float = Field(0.05, gt=0, le=0.5)
    """Share of good scans that may be declined; the limits are set by it on validation."""
    margin: float = Field(1.5, ge=1)
    """By which factor a scan's size and pixel spacing may lie beyond those of the training images."""


class Gate(Section):
    """What the compressed model must keep, judged on validation."""

    auc_margin: Fraction = 0.01
    """Largest loss of AUC that the paired bootstrap must rule out, or the point difference where `strict` is off."""
    strict: bool = False
    """True: the lower bound of the interval must stay within the margin; a small validation set rarely shows that."""
    max_decision_flips: Fraction = 0.05
    max_probability_shift: Fraction = 0.1
    """Mean absolute change of the probability."""
    max_size_ratio: Fraction = 0.5
    min_speedup: float = Field(1.0, ge=0)
    """Over the float model in the same or the other engine, whichever is faster."""


class Pruning(Section):
    """A narrower network for the int8 model: whole channels go, in steps, and training goes on after each."""

    target: float = Field(0.0, ge=0, lt=1)
    """Share of the multiply-adds taken away; 0 is off."""
    steps: int = Field(3, ge=1, le=20)
    """How many times channels go, the same share of what is left each time."""
    epochs: int = Field(10, ge=1)
    """Epochs of training after each step; the best on validation stays."""
    lr: float = Field(1.0, gt=0, le=1)
    """Their highest learning rate, as a fraction of the training's."""


class Compression(Section):
    """Export, pruning and static int8 after training."""

    opset: int = Field(18, ge=18, le=23)
    calibration_images: int = Field(300, ge=8)
    engines: list[Literal["onnxruntime", "openvino"]] = Field(["onnxruntime", "openvino"], min_length=1)
    threads: int = Field(0, ge=0)
    """Processor threads for inference; 0 takes all cores."""
    pruning: Pruning = Pruning()
    gate: Gate = Gate()
