"""How the trained network is made small and fast, and what the result must still achieve."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medopt.config.section import Fraction, Section

Profile = Literal["cpu", "cpu-vnni", "cuda-tensorrt", "edge"]
EngineName = Literal[
    "onnxruntime", "openvino", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino-gpu", "openvino-npu"
]


class Gate(Section):
    """What the int8 model must still achieve, measured on validation.

    A figure passes within its limit where its interval also stays within its bound; it is refused where its whole
    interval lies beyond the limit; else there are too few cases, and the gate cannot tell. Each validation case is
    judged with a calibration and an operating point that were fitted without it.
    """

    auc_margin: Fraction = 0.01
    """Largest loss of AUC."""
    auc_bound: Fraction = 0.05
    """Loss of AUC that the interval must rule out; a larger auc_margin takes its place."""
    max_decision_flips: Fraction = 0.05
    """Largest share of decisions that flip."""
    flips_bound: Fraction = 0.1
    """Share of flips that the interval must rule out; a larger max_decision_flips takes its place."""
    max_probability_shift: Fraction = 0.1
    """Mean absolute change of the probability, its interval included."""
    error_margin: Fraction = 0.02
    """Of a number: largest increase of the mean absolute error, as a share of the standard deviation of the truth."""
    error_bound: Fraction = 0.1
    """The increase that the interval must rule out; a larger error_margin takes its place."""
    strict: bool = False
    """True: no interval may reach beyond its limit, which a small validation set rarely shows."""
    max_size_ratio: Fraction = 0.5
    min_speedup: float = Field(1.0, ge=0)
    """Speed relative to the float model in its fastest engine."""
    mend: bool = True
    """Where int8 loses too much, keep the most harmful layers in float: 1, 2, 4 and so on, at most a quarter of all."""

    def reach(self, limit: float, bound: float) -> float:
        """How far the interval of a figure with this limit and bound may reach."""
        return limit if self.strict else max(limit, bound)


class Pruning(Section):
    """A narrower network for the int8 model: whole channels are removed in steps, and training continues after each."""

    target: float = Field(0.0, ge=0, lt=1)
    """Share of the multiply-adds that is removed; 0 is off."""
    steps: int = Field(1, ge=1, le=20)
    """In how many steps channels are removed, each time the same share of what is left."""
    epochs: int = Field(30, ge=1)
    """Epochs of training after each step; the weights of the last epoch are kept, when the rate is near zero."""
    lr: float = Field(1.0, gt=0, le=1)
    """Highest learning rate of these epochs, as a fraction of the rate of training."""
    imitate: Fraction = 0.8
    """Weight of the outputs of the network before pruning as targets (distillation); 0: labels alone."""


class Compression(Section):
    """Export, pruning and static int8 after training."""

    profile: Profile = "cpu"
    """Where the release will run. cpu: any processor, weights of 7 bits, as those without VNNI overflow with 8.
    cpu-vnni: 8 bits. cuda-tensorrt: symmetric and signed, as TensorRT needs it. edge: one thread, all layers int8."""
    opset: int = Field(18, ge=18, le=23)
    """ONNX operator set of the exported files."""
    calibration_images: int = Field(300, ge=8)
    """Number of training images, drawn at random, from which the int8 model takes its ranges."""
    engines: list[EngineName] = Field(["onnxruntime", "openvino"], min_length=1)
    """Engines that may serve the model: the gate tests each of them. The last four run on an NVIDIA GPU and on Intel's
    GPUs and NPUs; medopt has not been run on such a device yet."""
    threads: int = Field(0, ge=0)
    """Processor threads for inference; 0 takes all cores, or one with the profile edge."""
    pruning: Pruning = Pruning()
    gate: Gate = Gate()

    @property
    def cores(self) -> int:
        """The threads of an engine; 0 is all cores."""
        return self.threads or int(self.profile == "edge")
