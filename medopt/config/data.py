"""Which images a study uses, what it asks of them, and how they are prepared."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from medopt.config.covariates import Covariate, as_covariates, refuse_repeated
from medopt.config.section import Positive, Section
from medopt.core.number_scale import NumberScale
from medopt.core.records import Task, has_one_output


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


SIDES = ("lower", "higher")
"""What numbers up to the threshold, and above it, are called where a study does not say."""
_OF_CHANNELS = ("channel_grid", "missing_channel", "channel_frames", "channel_patients")
CHANNEL_NAME, MAX_CHANNELS = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$", 16
ChannelName = Annotated[str, Field(pattern=CHANNEL_NAME)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_pattern)]


class SeriesFilter(Section):
    """What a DICOM series has to be. An empty rule excludes nothing; case is ignored."""

    modality: list[str] = []
    """As the header writes it, as in [MR]."""
    body_part: list[Pattern] = []
    """Regular expressions; one of them must match in BodyPartExamined."""
    description: list[Pattern] = []
    """Regular expressions for SeriesDescription, in order of preference: the first that matches a series wins."""
    exclude: list[Pattern] = []
    """Regular expressions; a series is left out where one of them matches in its description."""
    image_type: list[str] = []
    """Values that ImageType must contain, as in [PRIMARY, AXIAL]."""
    derived: bool = False
    """True: images computed from others and secondary captures may be chosen, too. Localizers are never chosen."""
    presentation_intent: Literal["presentation", "processing"] | None = None
    """Projection images FOR PRESENTATION or FOR PROCESSING (PresentationIntentType): one exposure gives both."""
    orientation: list[Literal["axial", "coronal", "sagittal", "oblique"]] = []
    slices: tuple[int, int] | None = None
    """Minimum and maximum number of images of the series."""
    thickness_mm: tuple[float, float] | None = None
    """Minimum and maximum SliceThickness; a series without it is left out."""
    contrast: bool | None = None
    """True: with contrast agent; false: without."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, limits in (("slices", self.slices), ("thickness_mm", self.thickness_mm)):
            if limits is not None and limits[0] > limits[1]:
                raise ValueError(f"{name} is [minimum, maximum], not {limits[0]} to {limits[1]}")
        return self


class SeriesRules(SeriesFilter):
    """Which series of a DICOM study is used. An empty rule excludes nothing; case is ignored."""

    channels: dict[ChannelName, SeriesFilter] = {}
    """Where a case has several images (prepare.channels): the rules for the series of each, with the keys above, as in
    {t1: {description: [t1]}, adc: {description: [adc], derived: true}}. A rule given here replaces the one above.
    Exactly one series of a study must be left for each image."""

    def of_channel(self, name: str) -> SeriesFilter:
        """The rules of one image of a case: its own, and those of all images that it does not give anew."""
        shared = self.model_dump(exclude_defaults=True, exclude={"channels"})
        return SeriesFilter.model_validate(shared | self.channels[name].model_dump(exclude_defaults=True))


class Number(Section):
    """task regression: the number that is asked for, and the threshold that makes a yes-or-no question of it."""

    column: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_. -]{0,62}$")] = "label"
    """The column of the manifest that holds it."""
    quantity: str = ""
    """What it is, as in hippocampal volume; shown in answers, report and DICOM results. "": the name of the column."""
    unit: Annotated[str, Field(pattern=r"^[!-~]{1,20}$")] = "1"
    """Its unit as a UCUM code: a (years), mm3, mL, mm, [hnsf'U], kg/m2, %, or 1 for none."""
    code: Annotated[str, Field(pattern=r"^$|^[^\^]{1,16}\^[^\^]{1,16}\^[^\^]{1,64}$")] = ""
    """Its concept in DICOM results, VALUE^SCHEME^MEANING, as in 118565006^SCT^Volume (PS3.16 CID 7469 and others); "":
    Quantity."""
    scale: Literal["linear", "log"] = "linear"
    """log: errors count in proportion, for numbers above 0 that spread over a wide range."""
    threshold: float | None = None
    """Cases above it have the second of `labels`, the others the first. None: the median of the training cases."""
    spread: Positive | None = None
    """The unit of the network's output, on the scale: the standard deviation of the training cases, which the run fills
    in."""

    @model_validator(mode="after")
    def _above_zero(self) -> Self:
        if self.scale == "log" and self.threshold is not None and self.threshold <= 0:
            raise ValueError(f"scale log takes numbers above 0; threshold is {self.threshold:g}")
        return self

    @property
    def name(self) -> str:
        """What it is called."""
        return self.quantity or self.column

    def as_scale(self) -> NumberScale:
        """How the network's output becomes this number; threshold and spread must be resolved before."""
        if self.threshold is None or self.spread is None:
            raise ValueError("the threshold and the spread come from the training cases, which were not looked at")
        return NumberScale(self.scale, self.threshold, self.spread, self.unit, self.name, self.code)


class Data(Section):
    """Which images, and what the study asks of them."""

    manifest: str
    """CSV with the columns image, patient_id, label, split; beside this file, else in the data folder."""
    root: str = "."
    """Folder below the data folder (--data, else MEDOPT_DATA, else ./data) that the image paths start from."""
    task: Task = "binary"
    """What is asked for. binary: one of two labels. multiclass: one of several. multilabel: each of several, yes or no.
    ordinal: one of several grades in order. regression: a number."""
    labels: list[str] = Field(min_length=2)
    """Class names as in the manifest. Binary: the second is the finding. Multi-label: the names of the columns.
    Ordinal: the grades, the lowest first. Regression: what numbers up to the threshold and above it are called, lower
    and higher if left out."""
    number: Number = Number()
    """task regression: which number."""
    uncertain: Literal["ignore", "negative", "positive"] = "ignore"
    """Multi-label: how a cell -1 (uncertain, as in CheXpert) counts. ignore: as an unknown label. An empty cell is
    always unknown. Unknown labels are left out of the loss and of every figure, and their number is reported."""
    rename: dict[str, str] = {}
    """Labels as the manifest writes them, and what this study calls them: {"0": healthy, "1": nodule}."""
    accept: list[str] = []
    """Names of findings of the data check that this study accepts."""
    shortcuts: Literal["report", "refuse"] = "report"
    """Where size, padding, brightness, corners, file or header of an image tell the label: say so, or do not train."""
    folds: int = Field(0, ge=0)
    """Cross-validation: train and val are divided by patient into this many folds; test stays. 0: off."""
    fold: int = Field(0, ge=0)
    """The fold that validates, counted from 0."""
    subgroups: list[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_ ]{0,40}$")]] = []
    """Further columns of the manifest that define subgroups, beside site, sex, age, scanner, view and image size, which
    are always used. Never the identifier of a patient: the values are shown in the report."""
    covariates: list[Covariate] = []
    """Columns of the manifest that answer together with the image, as in [{column: age, tag: PatientAge}, smoker]: a
    linear model of theirs is added to the network's output, and both learn together."""
    series: SeriesRules = SeriesRules()
    """Which series of a DICOM study to use; `medopt series DIR --rules THIS.yaml` shows what is chosen."""

    _bare_names = field_validator("covariates", mode="before", json_schema_input_type=list[Covariate | str])(
        as_covariates
    )

    @model_validator(mode="before")
    @classmethod
    def _sides_of_the_threshold(cls, raw: Any) -> Any:
        """A number needs no names of classes."""
        if isinstance(raw, dict) and raw.get("task") == "regression" and "labels" not in raw:
            return {**raw, "labels": list(SIDES)}
        return raw

    @field_validator("rename", mode="before")
    @classmethod
    def _numbers_as_texts(cls, value: Any) -> Any:
        """YAML reads 0: healthy as a number."""
        whole = isinstance(value, dict) and not any(isinstance(key, bool) for key in value)
        return {str(key): name for key, name in value.items()} if whole else value

    @model_validator(mode="after")
    def _renamed_to_labels(self) -> Self:
        for old, new in self.rename.items():
            if new not in self.labels or new in self.rename or self.task in ("multilabel", "regression"):
                raise ValueError(f"rename: {old} becomes {new}, which has to be one of labels {self.labels} and no key")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"a label occurs twice in {self.labels}")
        if has_one_output(self.task) and len(self.labels) != 2:
            raise ValueError(f"a {self.task} study has two labels, not {len(self.labels)}; multiclass takes more")
        if self.task == "ordinal" and len(self.labels) < 3:
            raise ValueError(f"an ordinal study has three grades or more, not {self.labels}; two are a binary one")
        if self.task != "regression" and self.number != Number():
            raise ValueError(f"number is of a regression study, not of a {self.task} one")
        return self

    @model_validator(mode="after")
    def _other_columns(self) -> Self:
        column = [self.number.column] if self.task == "regression" else []
        refuse_repeated(self.covariates, [*column, *(self.labels if self.task == "multilabel" else [])])
        return self

    @model_validator(mode="after")
    def _uncertain_labels(self) -> Self:
        if self.uncertain != "ignore" and self.task != "multilabel":
            raise ValueError(f"uncertain: {self.uncertain} is for labels of a multilabel study, not a {self.task} one")
        return self

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds: one fold would validate on all cases and train on none; give 2 or more, or 0")
        if self.fold and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not one of {self.folds} folds, which are counted from 0")
        return self

    @property
    def outputs(self) -> int:
        """Number of outputs: one for a binary study or a number, else one for each label."""
        return 1 if has_one_output(self.task) else len(self.labels)

    @property
    def encoded_covariates(self) -> int:
        """Columns of numbers that the covariates become; 0 before the training cases were looked at."""
        return sum(one.encoded for one in self.covariates)


class Intensity(Section):
    """How stored values become 0 to 1."""

    method: Literal["percentiles", "range", "window", "windows", "minmax"] = "percentiles"
    low: float = 0.5
    """percentiles: the lower percentile; range: the value that becomes 0 (HU for CT)."""
    high: float = 99.5
    """percentiles: the upper percentile; range: the value that becomes 1. window: both come from the DICOM header, and
    so does the curve between them (VOILUTFunction). Padding counts in none of them."""
    windows: list[tuple[float, Positive]] = Field([], max_length=MAX_CHANNELS)
    """windows: center and width in the unit of the scan (HU for CT), as in [[-600, 1500], [50, 400]] for lung and soft
    tissue. Each becomes a channel of the network's input, in this order; pictures show the first."""

    @property
    def parts(self) -> tuple[Self, ...]:
        """The mapping of each channel that an image becomes: the range of each window, else the mapping itself."""
        edges = [(center - width / 2, center + width / 2) for center, width in self.windows]
        return tuple(type(self)(method="range", low=low, high=high) for low, high in edges) or (self,)

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Digests from before there were windows stay as they are."""
        values: dict[str, Any] = dump(self)
        return values if self.windows else {key: value for key, value in values.items() if key != "windows"}

    @model_validator(mode="after")
    def _windows_named(self) -> Self:
        if (self.method == "windows") != bool(self.windows):
            raise ValueError(
                f"method: {self.method} with {len(self.windows)} windows; write method: windows together with "
                "windows: [[-600, 1500], [50, 400]]"
            )
        return self

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.method == "percentiles" and not 0 <= self.low < self.high <= 100:
            raise ValueError(f"percentiles go from 0 to 100; low is {self.low}, high is {self.high}")
        return self


class Prepare(Section):
    """The deterministic chain from a Volume to the tensor of the model; its fingerprint is part of the release."""

    size: list[Annotated[int, Field(ge=8, le=4096)]] = Field(min_length=2, max_length=3)
    """(H, W) for images, (D, H, W) for volumes."""
    channels: Literal[1, 3] | Annotated[list[ChannelName], Field(min_length=2, max_length=MAX_CHANNELS)] = 1
    """1: colour becomes luminance; 3: grey is repeated. Names, as in [t1, t2, adc]: a case has an image for each, in
    the manifest's columns image:t1, image:t2, ...; each is scaled by its own intensities, and the network gets them in
    this order."""
    channel_grid: Literal["same", "resample"] = "same"
    """Images of a case: same refuses grids that differ by more than a tenth of a voxel; resample interpolates images
    of another spacing or extent on the grid of the first. Always refused: another orientation, another slice, and
    different grids of images that do not say where they lie in the patient."""
    missing_channel: Literal["refuse", "zeros"] = "refuse"
    """A case without one of its images: refuse it, or take zeros; the network then gets a mask for each channel, too: 1
    where its image is there, 0 where it is missing."""
    channel_frames: Literal["same", "registered"] = "same"
    """Images of a case with different DICOM frames of reference (FrameOfReferenceUID, PS3.3 C.7.4.1.1.1), whose
    positions cannot be compared: same refuses them; registered takes them, where they were registered to each other."""
    channel_patients: Literal["same", "ignore"] = "same"
    """Images of a case whose headers name different patients (PatientID): same refuses them; ignore takes them, where
    the identifier stands for no patient, as after some anonymizations."""
    spacing_mm: list[Positive] | None = None
    """Resample to this spacing in mm (axes as in `size`) before fitting; None keeps the spacing of the scan."""
    fit: Literal["stretch", "pad", "crop_or_pad"] = "pad"
    """stretch: each axis to size; pad: keep the aspect ratio, pad the rest; crop_or_pad: no resizing, crop or pad.
    The latter two make the pixels of an image square where its header says that they are not."""
    intensity: Intensity = Intensity()
    nan: Literal["refuse", "background"] = "refuse"
    """Voxels that are not a number, as SPM writes outside the body: refuse the scan, or take them for background."""

    @model_validator(mode="after")
    def _named_channels(self) -> Self:
        names = [name.lower() for name in self.channel_names]
        if len(set(names)) < len(names):
            raise ValueError(f"a channel occurs twice in {self.channels}")
        if "image" in names:
            raise ValueError("a channel cannot be called image: servers use that name for the prepared images")
        changed = [name for name in _OF_CHANNELS if getattr(self, name) != type(self).model_fields[name].default]
        if not names and changed:
            raise ValueError(f"{' and '.join(changed)} are for named channels, as in channels: [t1, t2]")
        if self.intensity.windows and self.channels != 1:
            raise ValueError(f"intensity.windows make the channels of one grey image; channels is {self.channels}")
        return self

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The images of a case, in order; empty where a case is one image."""
        return tuple(self.channels) if isinstance(self.channels, list) else ()

    @property
    def input_channels(self) -> int:
        """The channels of the network's input: with missing_channel zeros each image has a mask behind all of them."""
        if isinstance(self.channels, int):
            return max(self.channels, len(self.intensity.windows))
        return len(self.channels) * (2 if self.missing_channel == "zeros" else 1)

    @model_validator(mode="after")
    def _same_axes(self) -> Self:
        if self.spacing_mm is not None and len(self.spacing_mm) != len(self.size):
            raise ValueError(f"spacing_mm has {len(self.spacing_mm)} axes, size has {len(self.size)}")
        return self
