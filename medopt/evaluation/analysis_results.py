"""What the analyses beside `metrics.json` keep: robustness, explanations, the out-of-domain check, pruning."""

from __future__ import annotations

from typing import Literal

from medopt.core.records import Estimate
from medopt.core.result import ByKind, Result

Reason = Literal["false positive", "false negative", "drawn at random"]
Span = tuple[float, float]


class StartRecord(Result):
    """The pretrained weights that training began with: where they come from, and what of them was taken.

    `tensors` counts those that were taken, adapted, left out and new; `share` is that of the backbone's weights.
    """

    name: str
    digest: str
    licence: str
    trained_on: str
    tensors: dict[str, int]
    share: float
    note: str = ""
    """Why MLflow's registry was not asked for a registered version, where it did not answer."""

    @property
    def sentence(self) -> str:
        """The same in words."""
        counts = ", ".join(f"{count} {fate}" for fate, count in self.tensors.items() if count)
        return (
            f"Training began with {self.name} (SHA-256 {self.digest[:16]}..., licence {self.licence}; trained on "
            f"{self.trained_on}): {self.share:.0%} of the backbone's weights; tensors: {counts}."
            + (f" {self.note}." if self.note else "")
        )


class BaselineResult(Result):
    """A linear model, and the trained float network beside it: the AUC on test, and the network's less this one's.

    `strength` is None for the network itself without its covariates.
    """

    reads: str
    features: int
    strength: float | None
    validation_auc: float | None
    auc: Estimate
    gain: Estimate

    @property
    def title(self) -> str:
        """What it is, in words."""
        return self.reads if self.strength is None else f"a linear model on {self.reads}"


class Shortcut(Result):
    """The AUC that a fact of the images alone reaches in cross-validation; `corrected` for all that were looked at."""

    name: str
    auc: Estimate
    corrected: Estimate
    is_shortcut: bool


class ShortcutsResult(Result):
    """How far each trivial fact of the images alone tells the label, the highest AUC first."""

    images: int
    patients: int
    level: float
    looks: tuple[Shortcut, ...]


class BaselinesResult(Result):
    """`baselines.json`: the linear models by name (thumbnail, covariates, start), and the start; None: it was scratch.

    A study with covariates also has `image`: the network without them.
    `linear_goes_on`: training did not beat the linear model on the start's features, which was released instead.
    `shortcuts` are the models that see nothing but size, padding, brightness or header of an image.
    """

    models: dict[str, BaselineResult]
    start: StartRecord | None = None
    linear_goes_on: bool = False
    shortcuts: ShortcutsResult | None = None


class FamilyRobustness(Result):
    """AUC at each level of one kind of corruption, the mildest first, and the mean loss over the levels."""

    auc: tuple[Estimate, ...]
    drop: Estimate


class ModelRobustness(Result):
    """One model on clean and on corrupted images of the same cases.

    `mean` and `drop` are the AUC, and what it lost, averaged over families and levels: the one robustness figure.
    """

    clean: Estimate
    mean: Estimate
    drop: Estimate
    families: dict[str, FamilyRobustness]


class RobustnessResult(ByKind[ModelRobustness]):
    """`robustness.json`: both models on the same `cases` of the test split."""

    cases: int


class MapSimilarity(Result):
    """How alike maps remain when the weights are drawn anew from the top down to one part: means over cases."""

    down_to: str
    spearman: float
    ssim: float


class SanityCheck(Result):
    """Whether maps depend on what was learned (`depend`; None: no map could be judged), in words, over `cases`."""

    depend: bool | None = None
    said: str
    cases: int = 0
    drawn_anew: tuple[MapSimilarity, ...] = ()


class ExplainedCase(Result):
    """A case whose map was drawn: why it was chosen, the output looked at, its probability and the decision."""

    case_id: str
    why: Reason
    output: str
    probability: float
    decided: bool
    empty_map: bool


class NearestCases(Result):
    """The training cases nearest to an error, by the float model's features."""

    case_id: str
    nearest: tuple[str, ...]


class ExplanationResult(Result):
    """`explanations.json`: the method, the stage of the network, and the cases looked at."""

    method: str
    stage: str
    sanity: SanityCheck
    cases: tuple[ExplainedCase, ...]
    nearest: tuple[NearestCases, ...] = ()


class FittedImages(Result):
    """How many images the out-of-domain check was fitted on."""

    train: int
    validation: int


class HeaderRanges(Result):
    """What a header may say: modalities, and the least and the most of each axis, `margin` wider than in training."""

    modality: tuple[str, ...]
    spacing_mm: tuple[Span, ...] | None
    shape: tuple[Span, ...] | None
    margin: float | None = None


class DeclinedShares(Result):
    """The share of good scans that is declined: on validation, on the test split and at each of its sites."""

    validation: Estimate
    test: Estimate
    sites: dict[str, Estimate]


class DomainResult(Result):
    """`domain.json`: what the out-of-domain check declines, of scans as they are and of `altered` ones."""

    false_alarm: float
    images: FittedImages
    header_rules: HeaderRanges
    declined: ByKind[DeclinedShares]
    altered: dict[str, Estimate]


class MultiplyAdds(Result):
    """Multiply-adds of one image in the whole and in the pruned network, and the `share` that is left."""

    whole: int
    pruned: int
    share: float


class PruningAuc(Result):
    """AUC on validation before a step, right after channels went, and after training on; None: not defined."""

    before: float | None
    pruned: float | None
    tuned: float | None


class ChannelCounts(Result):
    """Channels of the stem, of what each stage passes on, and of each of its blocks (reduce, spatial)."""

    stem: int
    residual: tuple[int, ...]
    inner: tuple[tuple[tuple[int, int], ...], ...]


class PruningStep(Result):
    """One step of `pruning.json`: `target` is the share of multiply-adds that was to go, `weights` a SHA-256."""

    target: float
    multiply_adds: MultiplyAdds
    parameters: int
    validation_auc: PruningAuc
    epochs: int
    best_epoch: int
    widths: ChannelCounts
    weights: str
