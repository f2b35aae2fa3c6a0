"""How the trained network becomes small and fast, and what it must keep."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medopt.config.section import Fraction, Section

Profile = Literal["cpu", "cpu-vnni", "cuda-tensorrt", "edge"]
EngineName = Literal["onnxruntime", "openvino", "onnxruntime-cuda", "onnxruntime-tensorrt"]


class Gate(Section):
    """What the compressed model must keep, judged on validation.

    Each validation case is judged with a calibration and an operating point fitted without it.
    """

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
    mend: bool = True
    """Where int8 loses too much, leave the layers that harm most in float, as few as pass, up to a quarter of them."""


class Pruning(Section):
    """A narrower network for the int8 model: whole channels go, in steps, and training goes on after each."""

    target: float = Field(0.0, ge=0, lt=1)
    """Share of the multiply-adds taken away; 0 is off."""
    steps: int = Field(1, ge=1, le=20)
    """How many times channels go, the same share of what is left each time."""
    epochs: int = Field(30, ge=1)
    """Epochs of training after each step; the weights of the last one stay, when the rate has come down to zero."""
    lr: float = Field(1.0, gt=0, le=1)
    """Their highest learning rate, as a fraction of the training's."""
    imitate: Fraction = 0.8
    """How much of what it learns then are the answers of the network before pruning, to the same images; 0: labels."""


class Compression(Section):
    """Export, pruning and static int8 after training."""

    profile: Profile = "cpu"
    """Where the release is to run. cpu: any processor, weights of 7 bits, as those without VNNI overflow with 8.
    cpu-vnni: 8 bits. cuda-tensorrt: symmetric and signed, as TensorRT wants it. edge: one thread, all layers int8."""
    opset: int = Field(18, ge=18, le=23)
    calibration_images: int = Field(300, ge=8)
    """Training images, drawn at random, whose ranges the int8 model takes over; at the size of deployment."""
    engines: list[EngineName] = Field(["onnxruntime", "openvino"], min_length=1)
    """Those that may serve: the gate judges each."""
    threads: int = Field(0, ge=0)
    """Processor threads for inference; 0 takes all cores, and one on the edge."""
    pruning: Pruning = Pruning()
    gate: Gate = Gate()

    @property
    def cores(self) -> int:
        """Threads as engines take them; 0 is all."""
        return self.threads or int(self.profile == "edge")
