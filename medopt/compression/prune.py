"""Structured pruning: whole channels go, and what is left is a real narrower network of the same shape.

The gradient says how much a channel matters: the first-order change of the loss if the channel's outputs were scaled
to nothing, as the root of its mean square over training images (Molchanov et al., Importance Estimation for
Neural Network Pruning, 2019). All layers that write into a channel's group lose it at once, so their changes are added
up first. Divided by the multiply-adds that go with the channel, it is the price of each, and one threshold over all
groups decides. No group is normalized by itself: that takes channels where they are dear. Measured on BreastMNIST with
two thirds of the multiply-adds gone and nothing trained again, validation AUC .944: .913 so, .891 with the mean square
itself, .832 without the division, .858 at best normalized by group, .744 by the weights alone, .710 at random.

Our own pruner for our own residual groups (medopt.models.channel_widths): torch-pruning declares torchvision, which
does not load beside the CPU build of torch.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medopt.core.errors import ConfigError
from medopt.models.channel_widths import ChannelGroup, KeptChannels, Widths, channel_groups, module_of, take_channels
from medopt.models.cost import layer_costs, multiply_adds
from medopt.models.resnet import with_table

__all__ = ["gradient_scores", "multiply_adds", "prune_network", "weight_scores"]

Scores = Mapping[str, Tensor]
"""Of each group by name how much each channel matters (C,), in the units of the loss."""
MIN_CHANNELS, SHARE = 4, 8
"""No group keeps fewer channels than MIN_CHANNELS, nor than one in SHARE of those it had."""
STEPS = {128: 16, 32: 8, 16: 4}
"""Groups of so many channels keep a multiple of so many, as int8 kernels work in such steps: a ResNet-50 with 53 % of
its multiply-adds gone is 1.6 to 1.8 times as fast so as with any widths, one of a quarter width 1.4 times."""


def prune_network(
    model: nn.Module, size: Sequence[int], remove: float, scores: Scores | None = None, whole: Widths | None = None
) -> nn.Module:
    """A new, narrower network without the share `remove` (0 <= remove < 1) of the multiply-adds of `model`.

    What matters least by `scores` (see `gradient_scores`) goes, with its weights; what stays keeps them. Without
    scores the size of the weights decides, which is worse. At least that share goes, and no more than the rounding of
    the widths makes it. `whole` are the widths before any pruning, where `model` was pruned before: of these the least
    width of a group is taken. Raises ConfigError where that leaves too much.
    """
    first = "conv1.0" if isinstance(model.conv1, nn.Sequential) else "conv1"
    costs = layer_costs(model, module_of(model, first).in_channels, size)
    ladder = _Ladder(model, costs, scores, (whole or Widths.of(model)).by_group())
    target = (1 - remove) * sum(costs.values())
    smallest = ladder.cost(ladder.widths(len(ladder.order)))
    if smallest > target:
        raise ConfigError(
            f"{remove:.1%} of the multiply-adds cannot go: {1 - smallest / sum(costs.values()):.1%} is the most, "
            f"as each layer keeps at least {MIN_CHANNELS} channels and one in {SHARE}. Ask for less "
            "(compression.pruning.target)."
        )
    steps = range(len(ladder.order) + 1)
    gone = bisect.bisect_left(steps, True, key=lambda count: ladder.cost(ladder.widths(count)) <= target)
    return take_channels(model, ladder.remaining_channels(gone))


class _Ladder:
    """All channels of a network, the one that matters least first."""

    def __init__(
        self, model: nn.Module, costs: Mapping[str, int], scores: Scores | None, whole: Mapping[str, int]
    ) -> None:
        self.costs, self.whole = costs, whole
        self.groups = channel_groups(model)
        self.now = Widths.of(model).by_group()
        self.writes = {conv: group.name for group in self.groups for conv, _ in group.writers}
        self.reads = {name: group.name for group in self.groups for name in group.readers}
        self.scores = weight_scores(model) if scores is None else scores
        prices = {group.name: 1.0 if scores is None else self._freed(group) for group in self.groups}
        ranks = torch.cat([self.scores[group.name].double() / prices[group.name] for group in self.groups])
        owners = [number for number, group in enumerate(self.groups) for _ in range(self.now[group.name])]
        self.order = torch.tensor(owners)[torch.argsort(ranks, stable=True)]

    def _freed(self, group: ChannelGroup) -> float:
        """The multiply-adds that go with one channel."""
        layers = [*(conv for conv, _ in group.writers), *group.readers]
        return sum(self.costs[name] for name in layers) / self.now[group.name]

    def widths(self, gone: int) -> dict[str, int]:
        """The widths once the first `gone` channels have left, rounded up."""
        counts = torch.bincount(self.order[:gone], minlength=len(self.groups)).tolist()
        return {g.name: self._rounded(g.name, self.now[g.name] - n) for g, n in zip(self.groups, counts, strict=True)}

    def _rounded(self, name: str, width: int) -> int:
        whole = self.whole[name]
        step = next((step for wide, step in STEPS.items() if whole >= wide), 1)
        smallest = max(width, MIN_CHANNELS, -(-whole // SHARE))
        return min(-(-smallest // step) * step, self.now[name])

    def cost(self, widths: Mapping[str, int]) -> float:
        """Multiply-adds of the network at these widths."""

        def share(group: str | None) -> float:
            return widths[group] / self.now[group] if group else 1.0

        return sum(c * share(self.writes.get(name)) * share(self.reads.get(name)) for name, c in self.costs.items())

    def remaining_channels(self, gone: int) -> KeptChannels:
        """Which channels of each group stay then."""
        best = {name: torch.argsort(self.scores[name], descending=True, stable=True) for name in self.now}
        return {name: best[name][:width].sort().values for name, width in self.widths(gone).items()}


def weight_scores(model: nn.Module) -> dict[str, Tensor]:
    """How large the weights of each group's channels are (C,), over the group's mean.

    The squares of all weights that write a channel, with the normalization folded in, and of those that read it, each
    layer's over its mean, so that no layer outweighs another.
    """
    scores = {}
    for group in channel_groups(model):
        parts = []
        for conv, norm in group.writers:
            layer, weight = module_of(model, norm), module_of(model, conv).weight.detach()
            scale = layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
            parts.append((weight.flatten(1) * scale[:, None]).square().sum(1))
        for name in group.readers:
            parts.append(module_of(model, name).weight.detach().transpose(0, 1).flatten(1).square().sum(1))
        scores[group.name] = torch.stack([part / part.mean().clamp_min(1e-30) for part in parts]).sum(0).double().cpu()
    return scores


def gradient_scores(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """How much each group's channels (C,) matter for the loss over these images, to first order.

    `batches` are images (N, channels, *size) and targets on the model's device; `loss` maps (logits, targets) to a
    value a case (N,). In evaluation mode, so that the batch does not matter; the weights' gradients stay as they were.
    """
    groups, tiled = channel_groups(model), getattr(model, "tiling", None) is not None
    owner = {norm: group.name for group in groups for _, norm in group.writers}
    total: dict[str, Tensor] = {}
    effect: dict[str, Tensor] = {}  # (N, C) of each group: the change of each case's loss

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            # A ReLU may overwrite the output in place: what it sets to 0 has no gradient either.
            values = output.detach()

            def keep(gradient: Tensor) -> None:
                change = (values * gradient).flatten(2).sum(2).double().cpu()
                change = change.sum(0, keepdim=True) if tiled else change
                effect[name] = effect[name] + change if name in effect else change

            output.register_hook(keep)

        return hook

    hooks = [module_of(model, norm).register_forward_hook(watch(name)) for norm, name in owner.items()]
    mode, cases = model.training, 0
    try:
        model.eval()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for image, target in _one_by_one(batches) if tiled else batches:
            effect.clear()
            goal, table = with_table(model, target)
            torch.autograd.grad(loss(model(image, *table).float(), goal).sum(), parameters)
            total = {name: value.square().sum(0) + total.get(name, 0) for name, value in effect.items()}
            cases += len(image)
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    return {name: (value / cases).sqrt() for name, value in total.items()}


def _one_by_one(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one image each: of several the tiles could not be told apart."""
    for images, targets in batches:
        yield from zip(images.split(1), targets.split(1), strict=True)
