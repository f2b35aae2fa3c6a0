"""Augmentation and the training loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from medopt.config.model import FineTune
from medopt.config.section import Fraction, Positive, Section


class Augment(Section):
    """Random changes of training images only, on the GPU where there is one. Strengths are maxima; each effect is drawn
    with `probability`. Padding stays black."""

    probability: Fraction = 0.5
    """The share of images that get each of the effects below."""
    flip: list[Literal["left_right", "up_down", "slice"]] = ["left_right"]
    """Axes that may be mirrored; an empty list mirrors none."""
    rotate_degrees: float = Field(10, ge=0, le=180)
    """Largest angle to either side."""
    scale: Fraction = 0.1
    """Largest relative enlargement or reduction."""
    shear: Fraction = 0.0
    """Largest shear, as the tangent of its angle."""
    translate: Fraction = 0.05
    """As a fraction of the extent of the image."""
    elastic: Fraction = 0.0
    """Largest displacement, as a fraction of the extent of the image."""
    gamma: float = Field(0.2, ge=0, le=2)
    """Exponent drawn from exp(-gamma) to exp(gamma)."""
    contrast: Fraction = 0.2
    """Largest relative change of the distance from middle grey."""
    brightness: Fraction = 0.1
    """Largest shift, as a fraction of the intensity range."""
    gaussian_noise: Fraction = 0.03
    """Standard deviation, as a fraction of the intensity range."""
    rician_noise: Fraction = 0.0
    """Magnitude MR: standard deviation of either channel, as a fraction of the intensity range."""
    photons: float = Field(0, ge=0)
    """X-ray: smallest number of photons per pixel at full intensity (Poisson noise); 0 is off."""
    blur_pixels: float = Field(0, ge=0)
    """Largest standard deviation of a Gaussian blur, in pixels of the prepared image."""
    low_resolution: float = Field(1, ge=1, le=8)
    """Largest factor of down- and up-sampling; 1 is off."""
    bias_field: Fraction = 0.0
    """Largest relative deviation of a smooth multiplicative field."""
    erase: Fraction = 0.0
    """Largest side of an erased box, as a fraction of the extent of the image."""
    shift: Literal["none", "radiograph", "ct", "mr", "ultrasound"] = "none"
    """Simulated domain shift: the whole image as by another, randomly drawn scanner of this modality."""
    shift_probability: Fraction = 0.5
    """The share of images that are shifted."""


class Optimizer(Section):
    """Adam, AdamW, SGD with momentum or Nadam."""

    name: Literal["adam", "adamw", "sgd", "nadam"] = "adamw"
    """The method."""
    lr: Positive | Literal["auto"] = 2e-3
    """auto: from a learning-rate range test before the first epoch, as in `medopt tune lr`."""
    weight_decay: float = Field(0.05, ge=0)
    """Pull of the weights toward zero."""
    momentum: Fraction = 0.9
    """sgd: share of the last step that goes on in the next. adam, adamw, nadam: the first beta."""

    @property
    def rate(self) -> float:
        """The base learning rate; `auto` must be resolved before."""
        return float(self.lr)


class Switch(Section):
    """Another optimizer once validation stops improving, for example first Adam, then SGD."""

    to: Optimizer = Optimizer(name="sgd", lr=0.01)
    patience: int = Field(10, ge=1)
    """Epochs without progress before the switch, which happens once; the schedule continues from the new rate."""


class Schedule(Section):
    """The learning rate as a function of the step."""

    name: Literal["constant", "cosine", "cosine_restarts", "one_cycle", "plateau"] = "one_cycle"
    warmup: Fraction = 0.2
    """cosine, constant: share of the steps with a rising rate. one_cycle: share before the peak. The other schedules
    have none, and refuse it."""
    t_0: int = Field(10, ge=1)
    """cosine_restarts: epochs of the first cycle (Loshchilov & Hutter 2017)."""
    t_mult: int = Field(2, ge=1)
    """cosine_restarts: the factor from one cycle to the next."""
    eta_min: float = Field(1e-6, ge=0)
    """cosine, cosine_restarts, plateau: the lowest rate."""
    factor: Fraction = 0.3
    """plateau: the rate is multiplied by this."""
    patience: int = Field(5, ge=1)
    """plateau: epochs without progress before the rate falls."""

    @model_validator(mode="after")
    def _warmup_is_read(self) -> Self:
        default = type(self).model_fields["warmup"].default  # which stands in every resolved study file
        if self.name in ("cosine_restarts", "plateau") and self.warmup not in (0, default):
            raise ValueError(
                f"warmup is {self.warmup:g}, but the schedule {self.name} has no rising rate and would leave it "
                "unread: leave it out, or take constant, cosine or one_cycle"
            )
        return self


HOW = ("residence", "augment_on", "compile", "recompute")


def without_how(training: dict[str, Any]) -> dict[str, Any]:
    """The values of a training section without those that say how it is carried out, not what is trained.

    A training that goes on, or is found again, may have others; earlier versions had none, and no workers.
    """
    left = {key: value for key, value in training.items() if key not in HOW}
    return left | ({"workers": 0} if left.get("workers") == "auto" else {})


class Training(Section):
    """The training loop."""

    epochs: int = Field(60, ge=1)
    """How often training goes through all training images; early stopping may end it before."""
    batch_size: Annotated[int, Field(ge=2)] | Literal["auto"] = 32
    """Images of one optimizer step, over all devices. auto: the fastest size that fits this machine."""
    micro_batch: Annotated[int, Field(ge=2)] | Literal["auto"] | None = None
    """Maximum number of images on one device at once; gradients add up to the same step. None: the whole share of a
    device. auto: the fastest that fits the memory, as in `medopt tune batch`."""
    optimizer: Optimizer = Optimizer()
    switch: Switch | None = None
    schedule: Schedule = Schedule()
    metric: Literal["auc", "loss"] = "auc"
    """The validation figure by which training stops early, and by which `keep: best` chooses; of a number, auc means
    R2."""
    keep: Literal["auto", "last", "best"] = "auto"
    """Which epoch's (averaged) weights are kept. last: the last one's. best: the one with the best metric, as the mean
    of five epochs: its own and the four before; of equal ones the one with the lower loss. auto: last where the
    schedule lowers the rate to its end and training gets there, else best. One epoch's metric is noise: the highest of
    sixty flatters itself and predicts no better than the last."""
    patience: int = Field(60, ge=1)
    """Epochs without progress before training stops, to save time. A cycle ends near zero rate, and its end brings the
    gain."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Exponential moving average of the weights, used for validation and release; 0 is off."""
    clip_norm: float = Field(1.0, ge=0)
    """Gradients longer than this are shortened to it; 0 is off."""
    loss: Literal["cross_entropy", "focal", "cumulative", "huber", "absolute", "squared"] = "cross_entropy"
    """What training lowers. cross_entropy, focal: of labels. cumulative: of grades, so that the next grade is less
    wrong than the last; an ordinal study takes it in place of the cross-entropy. huber, absolute, squared: of a number;
    a regression study takes huber in place of the cross-entropy."""
    focal_gamma: float = Field(2.0, ge=0)
    """focal: how much less easy cases count (Lin et al. 2017); 0 is the cross-entropy."""
    label_smoothing: Fraction = 0.0
    """The share of a target that is spread over all classes; 0 is off."""
    class_weights: Literal["none", "balanced"] | dict[str, Positive] = "none"
    """balanced: the inverse of the share of a class; or a weight for each label by name."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """balanced: each class is drawn equally often, rare ones several times per epoch."""
    mixup: float = Field(0.3, ge=0)
    """Mix the augmented images of a step and their targets in pairs, in proportions from Beta(mixup, mixup) (Zhang et
    al. 2018); 0 is off."""
    fine_tune: FineTune = FineTune()
    teacher: str | list[str] = ""
    """A larger network whose answers this one learns, too (Hinton et al. 2015): a start, as `model.start` names it,
    with a linear layer that is fitted to this study's training images. Of several (runs of other seeds, for example)
    the mean answer is learned: an ensemble in one network."""
    teacher_digest: str = ""
    """SHA-256 of the teacher's file; of several all of them, with commas: filled in by the run."""
    teacher_share: Fraction = 0.5
    """Share of the teacher's answers in the targets."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """auto: bf16 where the GPU supports it, else float32 (bf16 is 50 times slower on CPUs without AMX)."""
    accelerator: Literal["auto", "cpu", "cuda", "mps", "tpu"] = "auto"
    """What trains. auto: a GPU where torch sees one. tpu: the device that torch_xla finds; run on XLA's CPU device only
    so far, never on a TPU."""
    workers: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = "auto"
    """Processes that read, draw and (where no GPU does it) augment ahead of the model. 0: the training process does it
    between steps. auto: none on a CPU, which has no core to spare; on a GPU all cores but one, at most 16."""
    residence: Literal["auto", "device", "host", "disk"] = "auto"
    """Where the prepared images lie while training. device: all in the GPU's memory, as 16-bit numbers. host: all in
    main memory; each micro-batch is copied while the one before is computed. disk: read again every epoch. auto: on a
    GPU the first of these that fits; on a CPU disk, which the system caches. The images are the same to the bit."""
    augment_on: Literal["auto", "device", "cpu"] = "auto"
    """What augments. device: what trains does, a micro-batch at a time. cpu: the workers. auto: on a GPU both are timed
    before the first epoch, and the faster one is kept for the run; on a CPU cpu. The images agree to 0.0001."""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile of the network. auto: on a GPU where the training is long enough to pay for it and a trial shows a
    faster step; never on a CPU, where trials showed none. true: always."""
    recompute: bool = False
    """Keep only each block's output for the backward pass and compute the rest again (gradient checkpointing): a fifth
    of the kept memory, 1.3 times the time (ResNet-50), the same gradients. It rules out `compile`."""

    @model_validator(mode="after")
    def _ways_that_go_together(self) -> Self:
        if self.recompute and self.compile is True:
            raise ValueError(
                "recompute and compile do not go together: a compiled network decides by itself what it keeps. Set "
                "compile: false, or recompute: false"
            )
        if self.residence == "device" and self.augment_on == "cpu" and self.accelerator != "cpu":
            raise ValueError(
                "residence is device, but augment_on is cpu: images that lie on the device are changed there. Set "
                "residence: host, or augment_on: device"
            )
        return self

    @property
    def teachers(self) -> list[str]:
        """The starts that teach; empty where none does."""
        names = [self.teacher] if isinstance(self.teacher, str) else self.teacher
        return [name for name in names if name]

    @property
    def has_auto(self) -> bool:
        """Whether a setting is `auto` and has to be measured before training."""
        return "auto" in (self.batch_size, self.micro_batch, self.optimizer.lr)

    @property
    def resolved_sizes(self) -> tuple[int, int]:
        """(images of a step, maximum at once on one device); `auto` must be resolved before."""
        size = int(self.batch_size)
        return size, size if self.micro_batch is None else min(size, int(self.micro_batch))
