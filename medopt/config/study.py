"""Study: the content of a study file. An unknown key is refused with "did you mean"."""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, model_validator

from medopt.config.compression import Compression
from medopt.config.data import Data, Prepare
from medopt.config.evaluation import Domain, Evaluation
from medopt.config.model import Model
from medopt.config.section import Section
from medopt.config.tiles import NetworkInput, network_input, refusal_of_tiles
from medopt.config.training import Augment, Training, without_how
from medopt.core.number_scale import NumberScale
from medopt.core.provenance import digest
from medopt.core.records import has_one_output, is_exclusive

LOSSES = {"ordinal": ("cumulative", "cross_entropy"), "regression": ("huber", "absolute", "squared")}
"""The losses of tasks other than labels without an order; the first takes the place of the default."""


class Study(Section):
    """One study dataset: the question, the data, the model, the training, the release.

    What a study file may say, typed and frozen; everything but `name`, `question`, `data` and `prepare` has a default.
    An unknown key is refused: pydantic's ValidationError, or from `load_study` a ConfigError with the nearest key.

    >>> study = Study(
    ...     name="nodules",
    ...     question="Is there a nodule?",
    ...     data={"manifest": "manifest.csv", "labels": ["no_nodule", "nodule"]},
    ...     prepare={"size": [96, 96]},
    ... )
    >>> study.model.depth, study.training.optimizer.name, study.data.outputs
    (26, 'adamw', 1)
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """Names the run folder, the MLflow experiment, the registered model and the served model."""
    question: str
    """What the study asks of a scan, as in "Does the image show a nodule?"; shown on report and card."""
    intended_use: str = ""
    """For which patients, users and decision the model is meant; written by whoever releases it, shown on its card."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Every random draw of a run comes from it: first weights, order, augmentation, mixup, bootstrap."""
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
    def _numbers_of_each_axis(self) -> Self:
        for name, lists in (("strides", self.model.strides), ("kernels", self.model.kernels)):
            if not isinstance(lists, str) and any(len(each) != self.network_input.dims for each in lists):
                raise ValueError(
                    f"model.{name} has lists of {len(lists[0])} numbers; the network has {self.network_input.dims} axes"
                )
        return self

    @model_validator(mode="after")
    def _tiles_that_fit(self) -> Self:
        if reason := refusal_of_tiles(self.prepare, self.model, self.training, self.data.outputs):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _series_of_each_channel(self) -> Self:
        ruled, names = set(self.data.series.channels), set(self.prepare.channel_names)
        if ruled and ruled != names:
            raise ValueError(
                f"data.series.channels has rules for {sorted(ruled)}; it needs them for each of prepare.channels, "
                f"{sorted(names)}"
            )
        return self

    @model_validator(mode="after")
    def _covariates_beside_channels(self) -> Self:
        channels = {name.lower() for name in self.prepare.channel_names}
        if both := [one.column for one in self.data.covariates if one.column.lower() in channels]:
            raise ValueError(f"data.covariates and prepare.channels both have {both[0]}: a request could not tell them")
        return self

    @model_validator(mode="after")
    def _rates_that_fall(self) -> Self:
        schedule, training = self.training.schedule, self.training
        rates = [training.optimizer.lr, *([training.switch.to.lr] if training.switch else [])]
        low = min((rate for rate in rates if rate != "auto"), default=math.inf)
        if schedule.name in ("cosine", "cosine_restarts", "plateau") and schedule.eta_min > low:
            raise ValueError(
                f"training.schedule.eta_min, the lowest rate, is {schedule.eta_min:g}, above a learning rate of "
                f"{low:g}: the rate would rise"
            )
        return self

    @model_validator(mode="after")
    def _answers_of_the_task(self) -> Self:
        task, evaluation = self.data.task, self.evaluation
        if evaluation.prevalence is not None and not has_one_output(task):
            raise ValueError(f"evaluation.prevalence is the share of one finding; a {task} study has several")
        if evaluation.operating_point == "cost" and is_exclusive(task):
            raise ValueError("evaluation.operating_point cost weighs one finding's misses; a multiclass study has none")
        if isinstance(evaluation.abstain, float) and evaluation.abstain and task == "multilabel":
            raise ValueError(
                "evaluation.abstain, as a share, leaves whole cases undecided; a multilabel study decides each label: "
                "give {coverage: 0.95}"
            )
        if evaluation.abstain and any(label.startswith("undecided") for label in self.data.labels):
            raise ValueError(
                "with evaluation.abstain no label may be called undecided, or begin so: such cases get this answer"
            )
        return self

    @model_validator(mode="after")
    def _loss_of_the_task(self) -> Self:
        task, training = self.data.task, self.training
        if self.loss not in LOSSES.get(task, ("cross_entropy", "focal")):
            raise ValueError(f"training.loss {training.loss} is not one of a {task} study")
        if task == "regression":
            unread = {
                "class_weights": training.class_weights != "none",
                "sampling": training.sampling != "shuffled",
                "label_smoothing": training.label_smoothing > 0,
                "teacher": bool(training.teachers),
            }
            if asked := [name for name, is_set in unread.items() if is_set]:
                raise ValueError(f"training.{asked[0]} is for labels; a regression study has a number")
        elif task == "ordinal" and training.class_weights != "none":
            raise ValueError("training.class_weights is for labels without an order; leave it out, or take multiclass")
        return self

    @property
    def loss(self) -> str:
        """What training lowers: `training.loss`, where that is not of labels, the usual one of the task."""
        given = self.training.loss
        return LOSSES[self.data.task][0] if given == "cross_entropy" and self.data.task in LOSSES else given

    @property
    def metric_name(self) -> str:
        """What the validation figure of `training.metric` is called."""
        return "R2" if self.data.task == "regression" and self.training.metric == "auc" else self.training.metric

    @property
    def number_scale(self) -> NumberScale | None:
        """How the output of a regression study becomes a number; None for all others."""
        return self.data.number.as_scale() if self.data.task == "regression" else None

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.prepare.size)

    @property
    def network_input(self) -> NetworkInput:
        """What the convolutions see at once: the prepared image, or a tile or some slices of it."""
        return network_input(self.prepare, self.model)

    def training_digest(self) -> str:
        """SHA-256 of the settings that training reads; what is measured, judged or written after it is left out."""
        data = self.data.model_dump(mode="json", include={"root", "task", "labels", "folds", "fold", "series"})
        if self.data.task == "regression":
            data["number"] = self.data.number.model_dump(mode="json")
        if self.data.covariates:
            data["covariates"] = [one.model_dump(mode="json", exclude={"tag"}) for one in self.data.covariates]
        sections = self.model_dump(mode="json", include={"seed", "prepare", "augment", "model", "training"})
        if self.model.start_digest:
            del sections["model"]["start"]  # a file by its content, wherever it lies
        sections["training"] = without_how(sections["training"])
        for key in ("strides", "kernels"):  # trainings from before there were any are found again
            if sections["model"][key] == "isotropic":
                del sections["model"][key]
        return digest(sections | {"data": data})

    def digest(self) -> str:
        """SHA-256 of the whole resolved study, except the path of its manifest, whose content has its own digest."""
        return digest(self.model_dump(mode="json", exclude={"data": {"manifest"}}))
