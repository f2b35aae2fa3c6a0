"""Study: all that a pipeline file may say. An unknown key is refused with "did you mean"."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from medopt.provenance import digest

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Task = Literal["binary", "multiclass", "multilabel"]
ShiftFamily = Literal[
    "noise", "blur", "contrast", "low_resolution", "bias_field", "motion", "compression", "detector"
]  # medopt.transforms.corrupt makes them


class Section(BaseModel):
    """A block of a study file: typed, closed, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_pattern)]


class SeriesRules(Section):
    """Which series of a DICOM study is the one to use. What is left empty asks for nothing; case never matters."""

    modality: list[str] = []
    """As the header writes it, as in [MR]."""
    body_part: list[Pattern] = []
    """Regular expressions; one of them has to be found in BodyPartExamined."""
    description: list[Pattern] = []
    """Regular expressions for SeriesDescription, in order of preference: the first that finds a series wins."""
    exclude: list[Pattern] = []
    """Regular expressions; a series in whose description one is found is left out."""
    image_type: list[str] = []
    """Values that ImageType must hold, as in [PRIMARY, AXIAL]."""
    derived: bool = False
    """True: images computed from others may be chosen, too. Localizers never are."""
    orientation: list[Literal["axial", "coronal", "sagittal", "oblique"]] = []
    slices: tuple[int, int] | None = None
    """Least and most images of the series."""
    thickness_mm: tuple[float, float] | None = None
    """Least and most SliceThickness; a series that does not say it is left out."""
    contrast: bool | None = None
    """True: with contrast agent; false: without."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, limits in (("slices", self.slices), ("thickness_mm", self.thickness_mm)):
            if limits is not None and limits[0] > limits[1]:
                raise ValueError(f"{name} goes from the least to the most, not from {limits[0]} to {limits[1]}")
        return self


class Data(Section):
    """Which images, and what is asked of them."""

    manifest: str
    """CSV with the columns image, patient_id, label, split; looked for beside this file, then in the data folder."""
    root: str = "."
    """Folder below the data folder (--data, else MEDOPT_DATA, else ./data) that the image paths start from."""
    task: Task = "binary"
    labels: list[str] = Field(min_length=2)
    """Class names as the manifest writes them. Binary: the second is the finding. Multi-label: the columns."""
    accept: list[str] = []
    """Findings of the data check that this study accepts by name."""
    folds: int = Field(0, ge=0)
    """Cross-validation: train and val are dealt out anew by patient into so many folds; test stays. 0: as they are."""
    fold: int = Field(0, ge=0)
    """Which fold validates, counted from 0."""
    subgroups: list[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_ ]{0,40}$")]] = []
    """Further columns of the manifest by whose values figures are told apart, beside site, sex, age, scanner, view and
    image size, which come by themselves. Never a patient's identifier: the values stand in the report."""
    series: SeriesRules = SeriesRules()
    """Which series of a DICOM study is meant; `medopt series DIR --rules THIS.yaml` shows what it chooses."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"a label stands twice in {self.labels}")
        if self.task == "binary" and len(self.labels) != 2:
            raise ValueError(f"a binary study has two labels, not {len(self.labels)}; multiclass takes more")
        return self

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds: one fold would validate on all and train on nothing; 2 is the least, 0 is off")
        if self.fold and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is none of {self.folds}; folds are counted from 0")
        return self

    @property
    def outputs(self) -> int:
        """Logits that the model gives: one for a binary study, else one a label."""
        return 1 if self.task == "binary" else len(self.labels)


class Intensity(Section):
    """How stored values become 0 to 1."""

    method: Literal["percentiles", "range", "window", "minmax"] = "percentiles"
    low: float = 0.5
    """percentiles: the lower percentile; range: the value that becomes 0 (HU for CT)."""
    high: float = 99.5
    """percentiles: the upper percentile; range: the value that becomes 1. window: both come from the DICOM header."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.method == "percentiles" and not 0 <= self.low < self.high <= 100:
            raise ValueError(f"percentiles go from 0 to 100; low is {self.low}, high is {self.high}")
        return self


class Prepare(Section):
    """The deterministic chain from a Volume to the model's tensor; its fingerprint travels with the release."""

    size: list[Annotated[int, Field(ge=8, le=4096)]] = Field(min_length=2, max_length=3)
    """(H, W) for images, (D, H, W) for volumes."""
    channels: Literal[1, 3] = 1
    """1: colour becomes luminance; 3: grey is repeated."""
    spacing_mm: list[Positive] | None = None
    """Resample to this spacing (same axes as size) before fitting; None keeps the scan's own."""
    fit: Literal["stretch", "pad", "crop_or_pad"] = "pad"
    """stretch: each axis to size; pad: keep the aspect, pad the rest; crop_or_pad: no resizing, cut or fill."""
    intensity: Intensity = Intensity()

    @model_validator(mode="after")
    def _same_axes(self) -> Self:
        if self.spacing_mm is not None and len(self.spacing_mm) != len(self.size):
            raise ValueError(f"spacing_mm has {len(self.spacing_mm)} axes, size has {len(self.size)}")
        return self


class Augment(Section):
    """Random changes of training images only. Strengths are the largest drawn; `probability` is each effect's own."""

    probability: Fraction = 0.5
    flip: list[Literal["left_right", "up_down", "slice"]] = ["left_right"]
    rotate_degrees: float = Field(10, ge=0, le=180)
    scale: Fraction = 0.1
    shear: Fraction = 0.0
    translate: Fraction = 0.05
    """As a fraction of the image's extent."""
    elastic: Fraction = 0.0
    """Largest displacement as a fraction of the image's extent."""
    gamma: float = Field(0.2, ge=0, le=2)
    """Exponent drawn from exp(-gamma) to exp(gamma)."""
    contrast: Fraction = 0.2
    brightness: Fraction = 0.1
    gaussian_noise: Fraction = 0.03
    """Standard deviation, as a fraction of the intensity range."""
    rician_noise: Fraction = 0.0
    """Magnitude MR: standard deviation of either channel, as a fraction of the intensity range."""
    photons: float = Field(0, ge=0)
    """X-ray: fewest photons a pixel at full intensity (Poisson noise); 0 is off."""
    blur_pixels: float = Field(0, ge=0)
    """Largest standard deviation of a Gaussian blur, in pixels of the prepared image."""
    low_resolution: float = Field(1, ge=1, le=8)
    """Largest factor of down- and up-sampling; 1 is off."""
    bias_field: Fraction = 0.0
    """Largest relative deviation of a smooth multiplicative field."""
    erase: Fraction = 0.0
    """Largest side of an erased box, as a fraction of the image's extent."""
    shift: Literal["none", "radiograph", "ct", "mr", "ultrasound"] = "none"
    """Simulated domain shift: draw one other scanner of this modality for the image, whole."""
    shift_probability: Fraction = 0.5


class Model(Section):
    """A bottleneck ResNet (He et al. 2016): 1x1 reduce, 3x3, 1x1 expand, skip, global average pooling."""

    depth: Literal[26, 50, 101, 152] = 26
    width: float = Field(0.25, gt=0, le=4)
    """Factor on all channel counts; 1 is the published ResNet."""
    stem: Literal["auto", "small", "medium", "large"] = "auto"
    """small: 3x3 stride 1; medium: 3x3 stride 2; large: 7x7 stride 2 and max pooling, the published one.
    auto: by the shortest side of the image, so that the last blocks still see 3 x 3 places or more."""
    init: Literal["he", "xavier"] = "he"
    zero_init_residual: bool = True
    """The last normalization of a block starts at 0, so that each block starts as the identity (Goyal et al. 2017)."""
    dropout: Fraction = 0.0


class Optimizer(Section):
    """Adam, AdamW, SGD with momentum or Nadam."""

    name: Literal["adam", "adamw", "sgd", "nadam"] = "adamw"
    lr: Positive | Literal["auto"] = 2e-3
    """auto: from a learning-rate range test before the first epoch, as `medopt tune lr` shows it."""
    weight_decay: float = Field(0.05, ge=0)
    momentum: Fraction = 0.9

    @property
    def rate(self) -> float:
        """The base learning rate as a number; `auto` must have been resolved before."""
        return float(self.lr)


class Switch(Section):
    """Another optimizer once validation has stopped getting better, as in Adam first and SGD after."""

    to: Optimizer = Optimizer(name="sgd", lr=0.01)
    patience: int = Field(10, ge=1)
    """Epochs without progress before the switch, which happens once; the schedule then runs on from the new rate."""


class Schedule(Section):
    """The learning rate as a function of the step."""

    name: Literal["constant", "cosine", "cosine_restarts", "one_cycle", "plateau"] = "one_cycle"
    warmup: Fraction = 0.2
    """cosine, constant: share of the steps with a rising rate. one_cycle: share before the peak."""
    t_0: int = Field(10, ge=1)
    """cosine_restarts: epochs of the first cycle (Loshchilov & Hutter 2017)."""
    t_mult: int = Field(2, ge=1)
    eta_min: float = Field(1e-6, ge=0)
    factor: Fraction = 0.3
    """plateau: what the rate is multiplied with."""
    patience: int = Field(5, ge=1)
    """plateau: epochs without progress before the rate falls."""


class Training(Section):
    """The loop."""

    epochs: int = Field(60, ge=1)
    batch_size: Annotated[int, Field(ge=2)] | Literal["auto"] = 32
    """Images of one step of the optimizer, over all devices. auto: the fastest that fits this machine."""
    micro_batch: Annotated[int, Field(ge=2)] | Literal["auto"] | None = None
    """Most images that pass one device at once; gradients add up to the same step. None: the whole share of a device.
    auto: the fastest that fits the memory, as `medopt tune batch` shows it."""
    optimizer: Optimizer = Optimizer()
    switch: Switch | None = None
    schedule: Schedule = Schedule()
    metric: Literal["auc", "loss"] = "auc"
    """Validation figure that chooses the best weights and stops early."""
    patience: int = Field(60, ge=1)
    """Epochs without progress before training stops. A cycle ends near zero rate, and its end is where the gain is."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Exponential moving average of the weights, used for validation and release; 0 is off."""
    clip_norm: float = Field(1.0, ge=0)
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: float = Field(2.0, ge=0)
    """focal: how much less an easy case counts (Lin et al. 2017); 0 is the cross-entropy."""
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] | dict[str, Positive] = "none"
    """balanced: the inverse of a class's share; or a weight for each label by name."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """balanced: each class is drawn as often as any other, rare ones several times an epoch."""
    mixup: float = Field(0.3, ge=0)
    """Mix images and targets in pairs, in proportions from Beta(mixup, mixup) (Zhang et al. 2018); 0 is off."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """auto: bf16 where the GPU has it, else float32 (bf16 is 50 times slower on CPUs without AMX)."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: int = Field(0, ge=0, le=64)
    """Processes that augment ahead of the model; 0 augments in this one, between the steps."""

    @property
    def leaves_open(self) -> bool:
        """Whether something is `auto`, to be found before training."""
        return "auto" in (self.batch_size, self.micro_batch, self.optimizer.lr)

    @property
    def resolved_sizes(self) -> tuple[int, int]:
        """Images of a step, and most images at once on one device; `auto` must have been resolved before."""
        size = int(self.batch_size)
        return size, size if self.micro_batch is None else min(size, int(self.micro_batch))


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


class Compression(Section):
    """Export and static int8 after training."""

    opset: int = Field(18, ge=18, le=23)
    calibration_images: int = Field(300, ge=8)
    engines: list[Literal["onnxruntime", "openvino"]] = Field(["onnxruntime", "openvino"], min_length=1)
    threads: int = Field(0, ge=0)
    """Processor threads for inference; 0 takes all cores."""
    gate: Gate = Gate()


class Study(Section):
    """One study dataset: the question, the data, the model, the training, the release."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    question: str
    intended_use: str = ""
    """For whom, in whose hands and for which decision the model is meant, for the model card; it is never guessed."""
    seed: int = Field(0, ge=0, lt=2**63)
    data: Data
    prepare: Prepare
    augment: Augment = Augment()
    model: Model = Model()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    compression: Compression = Compression()
    domain: Domain = Domain()

    @model_validator(mode="after")
    def _weights_of_labels(self) -> Self:
        weights = self.training.class_weights
        if isinstance(weights, dict) and set(weights) != set(self.data.labels):
            raise ValueError(
                f"training.class_weights names {sorted(weights)}; it needs a weight for each of {self.data.labels}"
            )
        return self

    @model_validator(mode="after")
    def _answers_of_the_task(self) -> Self:
        task, wanted = self.data.task, self.evaluation
        if wanted.prevalence is not None and task != "binary":
            raise ValueError(f"evaluation.prevalence is the share of one finding; a {task} study has several")
        if wanted.operating_point == "cost" and task == "multiclass":
            raise ValueError("evaluation.operating_point cost weighs one finding's misses; a multiclass study has none")
        if wanted.abstain and task == "multilabel":
            raise ValueError("evaluation.abstain leaves whole cases undecided; a multilabel study decides each label")
        if wanted.abstain and "undecided" in self.data.labels:
            raise ValueError("with evaluation.abstain no label may be called undecided: that is what is said then")
        return self

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.prepare.size)

    def digest(self) -> str:
        """SHA-256 of the whole resolved study, but for where its manifest lies: what that holds has its own digest."""
        return digest(self.model_dump(mode="json", exclude={"data": {"manifest"}}))
