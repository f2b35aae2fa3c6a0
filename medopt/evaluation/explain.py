"""Where a network looked: Grad-CAM maps of chosen cases, and whether the maps depend on the network at all.

Grad-CAM (Selvaraju et al. 2017) weights the maps of a late stage by how much the output gains from each. A map shows
where the evidence lay, coarsely; it is no segmentation and no proof of a right reason. Some methods give the same
picture for a network that has learned nothing, so the maps are compared with those of the network with its weights
drawn anew, from the last layer down (Adebayo et al. 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from medopt.config import Study
from medopt.core.records import FloatArray, is_exclusive
from medopt.core.telemetry import without_telemetry
from medopt.evaluation.analysis_results import MapSimilarity, Reason, SanityCheck
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.models import build_model
from medopt.models.tiles import Tiling
from medopt.transforms.restore import spread_out

STAGES = ("layer4", "layer3", "layer2", "layer1")  # of the network, from the last one down
LEAST_SIDE = 6  # a map of fewer places a side tells "left" from "right", and no more
TOP_DOWN = ("fc", *STAGES, "conv1")
DEPENDENT_BELOW = 0.5


@dataclass(frozen=True, slots=True)
class Chosen:
    """A case to be looked at: its row, whose output's decision is explained, its probability, and why it was chosen.

    `decided` is the decision on that output; of a negative one the evidence against the output is shown.
    """

    row: int
    output: int
    decided: bool
    probability: float
    why: Reason

    def explained(self, outputs: int) -> int:
        """The place of the evidence among the 2 K outputs that an `Explainer` knows."""
        return self.output if self.decided else outputs + self.output


def choose(scored: CalibratedPredictions, most: int, seed: int) -> list[Chosen]:
    """Up to `most` cases, one image a patient: a third the surest false positives, a third the surest false negatives.

    The rest is drawn at random, of right and wrong answers alike. In a multi-class study an error is the class that was
    chosen wrongly; there are then no false negatives, since each is another class's false positive.
    """
    probability, decided, truth = scored.probability, scored.decided, scored.truth
    patients, each = scored.predictions.patient_id, -(-most // 3)
    found: list[Chosen] = []

    def take(rows: Sequence[tuple[int, int]], why: Reason, room: int) -> None:
        for row, output in rows:
            if room and patients[row] not in {patients[one.row] for one in found}:
                found.append(Chosen(row, output, bool(decided[row, output]), float(probability[row, output]), why))
                room -= 1

    take(_sorted(decided & (truth == 0), -probability), "false positive", each)
    if not is_exclusive(scored.task):
        take(_sorted(~decided & (truth == 1), probability), "false negative", each)
    random = np.random.default_rng(seed).permutation(len(probability)).tolist()
    take([(row, int(probability[row].argmax())) for row in random], "drawn at random", max(0, most - len(found)))
    return found


def _sorted(wrong: NDArray[np.bool_], order: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Places (row, output) at which `wrong` holds, the lowest of `order` first."""
    places = np.argwhere(wrong)
    return [(int(row), int(output)) for row, output in places[np.argsort(order[wrong], kind="stable")]]


def stage_of(network: nn.Module, image: FloatArray) -> str:
    """The last stage whose map has LEAST_SIDE places a side for this image (C, *size); else the finest of them."""
    sizes: dict[str, int] = {}
    modules = dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _m, _i, out, name=name: sizes.update({name: min(out.shape[2:])}))
        for name in STAGES
    ]
    with torch.inference_mode():
        network.eval()(torch.from_numpy(image[None]))
    for handle in handles:
        handle.remove()
    return next((name for name in STAGES if sizes[name] >= LEAST_SIDE), STAGES[-1])


class _BothSides(nn.Module):
    """A network with the evidence against each output behind that for it: (N, K) logits become (N, 2 K)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Logits, and their negatives."""
        logits = self.network(image)
        return torch.cat([logits, -logits], dim=1)


class Explainer:
    """Grad-CAM of one or several networks at one stage. It works on copies: hooks stay on what they were put on."""

    def __init__(self, networks: Sequence[nn.Module], stage: str) -> None:
        with without_telemetry():
            from monai.visualize import GradCAM  # takes a second to import

        self.networks = [copy.deepcopy(network).eval() for network in networks]
        self._mirrored = [getattr(network, "mirrored", False) for network in networks]
        for network in self.networks:  # hooks hold one pass: the mirrored image is explained by itself
            network.mirrored = False  # type: ignore[assignment]
            if tiling := _tiling(network):
                tiling.at_once = None
        # MONAI's own ending turns the map over (low where it matters) and scales it; we want it as it is.
        self._cams = [
            GradCAM(
                _BothSides(one), target_layers=f"network.{stage}", upsampler=_spreader(one), postprocessing=_as_it_is
            )
            for one in self.networks
        ]

    def map(self, image: FloatArray, output: int) -> Tensor:
        """The map (*size), not negative, of one output for one image (C, *size).

        Outputs from the number of logits on are the evidence against: K + 2 is what speaks against output 2.
        Of several networks it is the mean: the map of the mean logit, since a mean's gradient is that of its parts.
        """
        batch = torch.from_numpy(np.array(image)[None])
        return torch.stack([self._one(at, batch, output) for at in range(len(self._cams))]).mean(0).detach()

    def _one(self, at: int, batch: Tensor, output: int) -> Tensor:
        """The map of one network; of one that answers the mean over both mirror images, the mean of both maps."""
        plain = torch.as_tensor(self._cams[at](batch, class_idx=output))[0, 0]
        if not self._mirrored[at]:
            return plain
        turned = torch.as_tensor(self._cams[at](batch.flip(-1), class_idx=output))[0, 0]
        return (plain + turned.flip(-1)) / 2


def _spreader(network: nn.Module) -> Callable[[Sequence[int]], Callable[[Tensor], Tensor]]:
    """What brings a stage's map to an image's size; those of tiles are put together."""
    tiling = _tiling(network)
    if tiling is None:
        return spread_out

    def of_size(size: Sequence[int]) -> Callable[[Tensor], Tensor]:
        return lambda values: tiling.stitched(values, size, spread_out(tiling.tile or size[1:]))

    return of_size


def _tiling(network: nn.Module) -> Tiling | None:
    tiling = getattr(network, "tiling", None)
    return tiling if isinstance(tiling, Tiling) else None


def _as_it_is(values: Any) -> Any:
    return values


def scaled(values: Tensor) -> Tensor:
    """The map over its largest value, 0 to 1; zeros stay zeros."""
    top = float(values.max())
    return values / top if top > 0 else torch.zeros_like(values)


def sanity_result(parts: Sequence[str], spearman: Sequence[float], ssim: Sequence[float], cases: int) -> SanityCheck:
    """Whether maps depend on what was learned: rank correlation below one half once all weights are drawn anew.

    The likenesses are means over so many `cases`, with the weights drawn anew down to each of `parts`; last, all.
    """
    depend = abs(spearman[-1]) < DEPENDENT_BELOW
    verb = "depend on" if depend else "HARDLY DEPEND on"
    said = (
        f"The maps {verb} the learned weights: with all of them drawn anew, the rank correlation is {spearman[-1]:.2f} "
        f"and the structural similarity {ssim[-1]:.2f}, over {cases} cases."
    )
    steps = zip(parts, spearman, ssim, strict=True)
    drawn_anew = tuple(MapSimilarity(down_to=part, spearman=rank, ssim=alike) for part, rank, alike in steps)
    return SanityCheck(depend=depend, said=said, cases=cases, drawn_anew=drawn_anew)


def check_sanity(
    study: Study, networks: Sequence[nn.Module], looked: Sequence[tuple[FloatArray, int]], stage: str
) -> SanityCheck:
    """Compare the maps of (image, output) pairs with those of the networks drawn anew, part by part.

    Cases whose own map is empty or even say nothing and are left out.
    """
    explainer, anew = Explainer(networks, stage), Explainer(networks, stage)
    own = [scaled(explainer.map(image, output)).numpy() for image, output in looked]
    kept = [index for index, one in enumerate(own) if one.max() > one.min()]
    if not kept:
        return SanityCheck(said="Every map is even: nothing can be said of them.")
    # A block that starts as the identity, as for training, would leave the upper stages nothing to draw anew.
    plain = study.model.model_copy(update={"zero_init_residual": False, "dropout": 0.0})
    fresh = [
        build_model(study.model_copy(update={"model": plain, "seed": (study.seed + 1 + index) % 2**63}))
        for index in range(len(networks))
    ]
    ranks, similar = [], []
    for part in TOP_DOWN:
        for network, source in zip(anew.networks, fresh, strict=True):
            _draw_anew(network, source, part)
        maps = [scaled(anew.map(*looked[index])).numpy() for index in kept]
        pairs = [(own[index], other) for index, other in zip(kept, maps, strict=True)]
        ranks.append(_mean_of(rank_correlation, pairs))
        similar.append(_mean_of(similarity, pairs))
    return sanity_result((*TOP_DOWN[:-1], "all"), ranks, similar, len(kept))


def _draw_anew(network: nn.Module, fresh: nn.Module, part: str) -> None:
    """Take one part's weights from `fresh`; the first convolution brings its normalization along."""
    new = fresh.state_dict()
    names = {"conv1": ["conv1", "bn1"], "fc": ["fc", "tiling"]}.get(part, [part])
    with torch.no_grad():
        for key, value in network.state_dict().items():
            source = key.replace("fc.1.", "fc.", 1) if key.startswith("fc.1.") else key  # behind a dropout
            if key.split(".")[0] in names:
                value.copy_(new[source])


def _mean_of(
    measure: Callable[[FloatArray, FloatArray], float], pairs: Sequence[tuple[FloatArray, FloatArray]]
) -> float:
    return float(np.mean([measure(first, second) for first, second in pairs]))


def rank_correlation(first: FloatArray, second: FloatArray) -> float:
    """Spearman's correlation of two maps; an even map is like no other: 0."""
    if second.max() == second.min():
        return 0.0
    return float(spearmanr(first.ravel(), second.ravel()).statistic)


def similarity(first: FloatArray, second: FloatArray) -> float:
    """Structural similarity (Wang et al. 2004) of two maps in 0..1, in windows of 7 places or fewer."""
    side = min(7, *first.shape)
    return float(structural_similarity(first, second, data_range=1.0, win_size=side - 1 + side % 2))
