"""Bottleneck ResNets of 14, 26, 50, 101 and 152 layers on MONAI's ResNet, 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.core.telemetry import without_telemetry
from medopt.models.bottleneck import BottleneckLayer
from medopt.models.depth_heads import DepthHeads, InputScaling
from medopt.models.geometry import STEMS, Geometry, PerAxis, Stem, resolve_geometry
from medopt.models.initialization import initialize
from medopt.models.recompute import run_again
from medopt.models.tiles import Tiling, study_tiling
from medopt.models.variants import VARIANTS, Variant, dilate

with without_telemetry():
    from monai.networks.layers.factories import Conv, Norm, Pool
    from monai.networks.nets.resnet import ResNet

LAYERS = {14: [1, 1, 1, 1], 26: [2, 2, 2, 2], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
CHANNELS = [64, 128, 256, 512]
STAGES = ("layer1", "layer2", "layer3", "layer4")
EXPANSION = 4


class _Stage(nn.Sequential):
    """The blocks of a stage; `maps` takes the output of each."""

    recomputes = False

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        for block in self:
            x = run_again(block, x, block) if self.recomputes and torch.is_grad_enabled() else block(x)
            if maps is not None:
                maps.append(x)
        return x


class _Expansion:
    """What MONAI asks of a kind of block: by how much its outputs are wider than its bottleneck."""

    expansion = EXPANSION


class BottleneckResNet(ResNet):
    """MONAI's ResNet of our blocks: with a stem as wide as is asked for, and a head on one depth or on all."""

    mirrored = False
    covariates: nn.Parameter | None
    tiling: Tiling | None

    def __init__(
        self, variant: Variant, layers: list[int], channels: int, outputs: int, dims: int, widths: Sequence[int],
        geometry: Geometry, scaled: int, head: str, dropout: float,
    ) -> None:  # fmt: skip
        self.variant, self.geometry, self.widths = variant, geometry, tuple(widths)  # the stages read them
        shape = STEMS[geometry.stem]
        super().__init__(
            block=_Expansion,  # type: ignore[arg-type]  # our own stages build our own blocks
            layers=layers,
            block_inplanes=[*widths[1:]],
            spatial_dims=dims,
            n_input_channels=scaled or channels,
            num_classes=outputs,
            conv1_t_size=geometry.kernels[0],  # type: ignore[arg-type]  # MONAI's own hint knows only one number
            conv1_t_stride=geometry.strides[0],  # type: ignore[arg-type]
            no_max_pool=not shape.pools,
        )
        if geometry.stem == "deep":
            self.conv1 = _deep_stem(scaled or channels, widths[0], geometry)  # type: ignore[assignment]
        if widths[0] != widths[1]:
            if geometry.stem != "deep":
                self.conv1 = _like(self.conv1, widths[0], dims)
            self.bn1 = Norm[Norm.BATCH, dims](widths[0])
        self.maxpool = _max_pool(geometry.strides[1], pads=variant.pads_pool)
        if variant.dilated:
            dilate(self.layer3, 2, dims)
            dilate(self.layer4, 4, dims)
        self.register_parameter("covariates", None)
        self.scaling = InputScaling(scaled, dims) if scaled else nn.Identity()
        self.tiling = None
        if head == "every_depth":
            self.fc = DepthHeads(self.depths(widths), outputs, dropout)  # type: ignore[assignment]

    def _make_layer(
        self, block: Any, planes: int, blocks: int, spatial_dims: int, *_args: Any, **_monai: Any
    ) -> nn.Sequential:
        """A stage of our blocks in place of MONAI's; its __init__ asks for them in order."""
        number = next(number for number, name in enumerate(STAGES) if name not in self._modules)
        kinds: dict[str, Any] = {
            "spatial_dims": spatial_dims, "kernel": self.geometry.kernels[1 + number],
            "projects": self.variant.skip, "stride_on": self.variant.stride_on,
        }  # fmt: skip
        inputs, outputs = self.widths[0] if number == 0 else self.in_planes, planes * EXPANSION
        stride = self.geometry.strides[1 + number] if number else 1
        first = BottleneckLayer(inputs, planes, outputs, stride=stride, **kinds)
        self.in_planes = outputs
        return _Stage(first, *(BottleneckLayer(outputs, planes, outputs, **kinds) for _ in range(1, blocks)))

    def depths(self, widths: Sequence[int]) -> list[int]:
        """Channels of the stem and of each block's output, in the order of the data."""
        stages = zip(widths[1:], STAGES, strict=True)
        return [widths[0], *(width * EXPANSION for width, name in stages for _ in getattr(self, name))]

    def features(self, x: Tensor) -> list[Tensor]:
        """(N, C, *space) to the means (N, channels) of what the stem and each block give, in the order of the data."""
        return self._both_ways(x, every=True)

    def means(self, x: Tensor, every: bool) -> list[Tensor]:
        """The same of what the convolutions see at once; without `every` the last alone."""
        maps: list[Tensor] = []
        last = self._run(x, maps if every else None)
        return [self.avgpool(each).flatten(1) for each in (maps if every else [last])]

    def _both_ways(self, x: Tensor, every: bool) -> list[Tensor]:
        """The pooled features; in evaluation of a mirrored network the mean with those of the mirrored images."""
        if not self.mirrored or self.training:
            return self._pooled(x, every)
        pairs = zip(self._pooled(x, every), self._pooled(x.flip(-1), every), strict=True)
        return [(one + other) / 2 for one, other in pairs]

    def _pooled(self, x: Tensor, every: bool) -> list[Tensor]:
        return self.means(x, every) if self.tiling is None else self.tiling.read(x, self, every).pooled

    def _run(self, x: Tensor, maps: list[Tensor] | None) -> Tensor:
        x = self.act(self.bn1(self.conv1(self.scaling(x))))
        if maps is not None:
            maps.append(x)
        if not self.no_max_pool:
            x = self.maxpool(x)
        for name in STAGES:
            x = getattr(self, name)(x, maps)
            if maps is not None:
                maps[-1] = x  # the stage's own output, so that what hooks on a stage sees all that is made of it
        return x

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        """(N, C, *space), and encoded covariates (N, F) where there are any, to logits (N, outputs).

        Without the covariates the logits are those of the image alone, which exported models give.
        """
        logits = self.answer(self._both_ways(x, self.reads_every))
        if table is None or self.covariates is None:
            return logits
        # Not a matrix product, which half precision would round.
        return logits + (table[:, :, None] * self.covariates).sum(dim=1)

    @property
    def reads_every(self) -> bool:
        """Whether the head reads every depth."""
        return isinstance(self.fc, DepthHeads)

    def answer(self, features: list[Tensor]) -> Tensor:
        """Logits (N, outputs) of pooled features: of every depth where the head reads them, else of the last one."""
        assert self.fc is not None
        logits: Tensor = self.fc(features if self.reads_every else features[-1])
        return logits


def with_table(model: nn.Module, target: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Targets (N, K) and the further arguments of a network, of targets with encoded covariates behind (N, K + F).

    `model` is the network itself, whatever calls it.
    """
    coefficients = getattr(model, "covariates", None)
    if coefficients is None:
        return target, ()
    count = target.shape[1] - len(coefficients)
    return target[:, :count], (target[:, count:],)


def recompute_blocks(model: nn.Module) -> None:
    """Let a network keep the blocks' outputs only, and compute the rest again in the backward pass."""
    for stage in model.modules():
        if isinstance(stage, _Stage):
            stage.recomputes = True


def _like(conv: Any, outputs: int, dims: int) -> Any:
    """A convolution with another number of outputs."""
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    return Conv[Conv.CONV, dims](conv.in_channels, outputs, kernel, stride=stride, padding=padding, bias=False)


def _deep_stem(inputs: int, outputs: int, geometry: Geometry) -> nn.Sequential:
    """Three 3x3 convolutions in place of one of 7x7, the first with the stride (He et al. 2019, ResNet-C)."""
    dims, sides, stride = len(geometry.kernels[0]), geometry.kernels[0], geometry.strides[0]
    conv, norm, half = Conv[Conv.CONV, dims], Norm[Norm.BATCH, dims], outputs // 2
    padding = tuple(side // 2 for side in sides)
    return nn.Sequential(
        *(conv(inputs, half, sides, stride=stride, padding=padding, bias=False), norm(half), nn.ReLU(inplace=True)),
        *(conv(half, half, sides, padding=padding, bias=False), norm(half), nn.ReLU(inplace=True)),
        conv(half, outputs, sides, padding=padding, bias=False),
    )


def _max_pool(stride: tuple[int, ...], *, pads: bool) -> Any:
    """The stem's pooling of 3x3 places, along the axes that it halves."""
    sides = tuple(3 if step > 1 else 1 for step in stride)
    pool = Pool[Pool.MAX, len(stride)]
    if not pads:  # Caffe begins at the edge of the image
        return pool(kernel_size=sides, stride=stride, ceil_mode=True)
    return pool(kernel_size=sides, stride=stride, padding=tuple(side // 2 for side in sides))


def build_resnet(
    depth: int = 26,
    *,
    spatial_dims: int = 2,
    channels: int = 1,
    outputs: int = 1,
    width: float | Sequence[float] = 0.25,
    stem: Stem = "auto",
    size: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    strides: PerAxis = "isotropic",
    kernels: PerAxis = "isotropic",
    variant: Literal["pooled", "v1", "caffe", "v1.5", "d", "dilated"] = "pooled",
    head: Literal["last", "every_depth"] = "last",
    scaled_channels: int = 0,
    mirrored: bool = False,
    init: Literal["he", "xavier"] = "he",
    zero_init_residual: bool = True,
    dropout: float = 0.0,
    covariates: int = 0,
    seed: int = 0,
) -> nn.Module:
    """Build a bottleneck ResNet with freshly drawn weights; the defaults are those of a study file.

    Shapes: (N, channels, *space) float32 to logits (N, outputs), with `spatial_dims` (2 or 3) axes of space of any
    length: global average pooling ends it. The logits are neither sigmoid nor softmax.

    Args:
        depth: layers: 14, 26, 50, 101 or 152.
        spatial_dims: 2 for images (N, C, H, W), 3 for volumes (N, C, D, H, W).
        channels: channels of the input, 1 for grey values.
        outputs: logits; 1 for a binary question, else one for each label.
        width: factor on all channel counts; 1 is the published network. Five numbers: of the stem and the four stages.
        stem: "small" (3x3, stride 1), "medium" (3x3, stride 2), "large" (7x7, stride 2 and max pooling, as published)
            or "deep" (three 3x3 in place of the 7x7). Two that only weights from elsewhere ask for: "full" (7x7, stride
            1 and max pooling, MONAI's default) and "slices" (3x7x7 on a volume, stride 2 within the slices only and max
            pooling, I3ResNet). "auto": by the shortest side of `size`, so that the last blocks still see 3 x 3 places
            or more; "large" where no `size` is given.
        size: length of each axis of space that the network is meant for; only what is "auto" looks at it.
        spacing: the step along each axis, in mm; only what is "auto" looks at it.
        strides: "isotropic", the same along all axes, as published. "auto": fitted to `size` and `spacing`, so that an
            axis of thick slices is not halved before the others have caught up, and none below 3 places (see
            `medopt.models.geometry`). Or five lists of a number an axis: of the stem's convolution, its pooling, and of
            layer2, layer3 and layer4.
        kernels: the same for the sides of the kernels: of the stem's convolution, and of the 3x3 convolutions of the
            four stages. Weights made with other kernels do not fit; strides change no shape.
        variant: where the stride of a block sits, what its skip projects and how the stem pools: see
            `medopt.models.variants`.
        head: "last", a linear layer on the means of the last block, or "every_depth", on those of the stem and of all
            blocks.
        scaled_channels: channels that an affine layer makes of the image before the stem; 0: no such layer.
        mirrored: the answer is that to the image and to its mirror from left to right, on average, in twice the time.
        init: "he" or "xavier", see `medopt.models.initialize`.
        zero_init_residual: the last normalization of each block starts at 0 (Goyal et al. 2017).
        dropout: share of the pooled features that is dropped in training.
        covariates: columns of encoded covariates that are added to the logits by a linear term; its coefficients begin
            at 0.
        seed: of the weights; torch's global random state is not touched.

    Raises ConfigError naming an argument that has no such choice.
    Source: He et al., Deep Residual Learning for Image Recognition (2016), table 1; ResNet-D: He et al., Bag of Tricks
    for Image Classification (2019).

    >>> import torch
    >>> network = build_resnet(depth=26, spatial_dims=2, channels=1, outputs=2, size=(32, 32))
    >>> network(torch.zeros(4, 1, 32, 32)).shape
    torch.Size([4, 2])
    >>> thick = build_resnet(spatial_dims=3, size=(20, 96, 96), spacing=(5, 0.8, 0.8), strides="auto", kernels="auto")
    >>> thick.conv1.kernel_size, thick.conv1.stride
    ((1, 7, 7), (1, 2, 2))
    """
    _refuse("depth", depth, LAYERS)
    _refuse("spatial_dims", spatial_dims, (2, 3))
    _refuse("stem", stem, get_args(Stem))
    _refuse("variant", variant, VARIANTS)
    _refuse("head", head, ("last", "every_depth"))
    _refuse("init", init, ("he", "xavier"))
    if stem == "slices" and spatial_dims == 2:
        raise ConfigError("stem is 'slices', which only a volume has; an image's is 'large'.")
    factors = [float(width)] * 5 if isinstance(width, int | float) else [*width]
    if len(factors) != 5:
        raise ConfigError(f"width has {len(factors)} numbers; give one, or five: of the stem and of the four stages.")
    widths = [int(count * factor) for count, factor in zip([CHANNELS[0], *CHANNELS], factors, strict=True)]
    dilated = VARIANTS[variant].dilated
    geometry = resolve_geometry(spatial_dims, stem, strides, kernels, size, spacing, dilated=dilated)
    model = BottleneckResNet(
        *(VARIANTS[variant], LAYERS[depth], channels, outputs, spatial_dims, widths, geometry, scaled_channels, head),
        dropout,
    )
    model.mirrored = mirrored
    initialize(model, init, torch.Generator().manual_seed(seed), zero_init_residual=zero_init_residual)
    if dropout and head == "last":
        model.fc = nn.Sequential(nn.Dropout(dropout), model.fc)  # type: ignore[arg-type, assignment]
    if covariates:
        model.covariates = nn.Parameter(torch.zeros(covariates, outputs))
    return model


def _refuse(name: str, value: object, choices: Any) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; give one of {', '.join(map(str, choices))}.")


def network_note(study: Study) -> dict[str, Any]:
    """What the shapes of the weights do not tell of a study's network, for a file of them."""
    geometry = study_geometry(study).settings()
    return {"variant": study.model.variant} | {key: value for key, value in geometry.items() if value != "isotropic"}


def study_geometry(study: Study) -> Geometry:
    """The stem, strides and kernels of a study's network, with `auto` resolved by its prepared images."""
    model, seen = study.model, study.network_input
    return resolve_geometry(
        *(seen.dims, model.stem, model.strides, model.kernels, seen.size, seen.spacing_mm),
        dilated=VARIANTS[model.variant].dilated,
    )


def build_model(study: Study) -> nn.Module:
    """The study's network: (N, C, *size) to (N, outputs) logits, weights drawn from the study's seed."""
    seen = study.network_input
    model = build_resnet(
        spatial_dims=seen.dims,
        channels=seen.channels,
        outputs=study.data.outputs,
        size=seen.size,
        spacing=seen.spacing_mm,
        covariates=study.data.encoded_covariates,
        seed=study.seed,
        **study.model.architecture(),
    )
    assert isinstance(model, BottleneckResNet)
    model.tiling = study_tiling(study, model.widths[-1] * EXPANSION)
    if model.tiling is not None:
        initialize(model.tiling, study.model.init, torch.Generator().manual_seed(study.seed + 1))
        if model.tiling.attention is not None:
            model.tiling.attention.start_even()
    return model
