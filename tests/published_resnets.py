"""A bottleneck ResNet written as the published ones are, independent of medopt's: the peer of the starts' tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(
        self, dims: int, inputs: int, planes: int, stride: int, *, first: bool, v1: bool, averaged: bool, bias: bool,
        dilation: int, eps: float,
    ) -> None:  # fmt: skip
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        one, three = (stride, 1) if v1 else (1, stride)
        self.conv1 = conv(inputs, planes, 1, one, bias=bias)
        self.bn1 = norm(planes, eps)
        self.conv2 = conv(planes, planes, 3, three, dilation, dilation, bias=bias)
        self.bn2 = norm(planes, eps)
        self.conv3 = conv(planes, 4 * planes, 1, bias=bias)
        self.bn3 = norm(4 * planes, eps)
        self.downsample = None
        if first:
            pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            project = conv(inputs, 4 * planes, 1, 1 if averaged else stride, bias=bias)
            self.downsample = nn.Sequential(*[pool] * averaged, project, norm(4 * planes, eps))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        return (self.bn3(self.conv3(out)) + (x if self.downsample is None else self.downsample(x))).relu()


class PublishedResNet(nn.Module):
    """torchvision's names; `forward` gives the means of the stem's and of every block's output, and then the logits."""

    def __init__(
        self, dims: int = 2, channels: int = 3, *, planes: Sequence[int] = (8, 16, 32, 64), stem_width: int = 8,
        outputs: int = 5, kernel: int | tuple[int, ...] = 7, stride: int | tuple[int, ...] = 2, deep: bool = False,
        v1: bool = False, averaged: bool = False, bias: bool = False, dilated: bool = False, eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        if deep:
            half = stem_width // 2
            self.conv1 = nn.Sequential(
                *(conv(channels, half, 3, 2, 1, bias=bias), norm(half, eps), nn.ReLU()),
                *(conv(half, half, 3, 1, 1, bias=bias), norm(half, eps), nn.ReLU()),
                conv(half, stem_width, 3, 1, 1, bias=bias),
            )
        else:
            sides = kernel if isinstance(kernel, tuple) else (kernel,) * dims
            self.conv1 = conv(channels, stem_width, sides, stride, [side // 2 for side in sides], bias=bias)
        self.bn1 = norm(stem_width, eps)
        self.maxpool = (nn.MaxPool2d if dims == 2 else nn.MaxPool3d)(3, 2, 1)
        inputs = stem_width
        for number, width in enumerate(planes):
            first, reach = (1, (1, 1, 2, 4)[number]) if dilated and number > 1 else (1 if number == 0 else 2, 1)
            same = {"v1": v1, "averaged": averaged, "bias": bias, "dilation": reach, "eps": eps}
            blocks = [Block(dims, inputs, width, first, first=True, **same)]
            blocks.append(Block(dims, 4 * width, width, 1, first=False, **same))
            inputs = 4 * width
            setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x)[-1])

    def features(self, x: Tensor) -> list[Tensor]:
        x = self.bn1(self.conv1(x)).relu()
        found = [x.flatten(2).mean(2)]
        x = self.maxpool(x)
        for number in range(1, 5):
            for block in getattr(self, f"layer{number}"):
                x = block(x)
                found.append(x.flatten(2).mean(2))
        return found


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation, with weights and statistics drawn as if it had been trained."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5, generator=random)
                module.bias.uniform_(-0.3, 0.3, generator=random)
                module.running_mean.normal_(0, 0.3, generator=random)
                module.running_var.uniform_(0.5, 2, generator=random)
            elif isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, generator=random)
                if module.bias is not None:
                    module.bias.normal_(0, 0.3, generator=random)
    return network.eval()
