"""The network, what it begins with, and how that is tuned."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from medopt.config.section import Fraction, Positive, Section

SCRATCH, AUTO = "scratch", "auto"
_Counts = list[Annotated[int, Field(ge=1, le=7)]]
PerAxis = (
    Literal["isotropic", "auto"]
    | Annotated[list[Annotated[_Counts, Field(min_length=2, max_length=3)]], Field(min_length=5, max_length=5)]
)
Width = Positive | Annotated[list[Positive], Field(min_length=5, max_length=5)]
TILING = ("pooling", "tile", "slices", "global_view", "top_k", "tiles_at_once")
"""The keys that a network of the whole image does not read; its settings, and their digests, are without them."""
_TileSide = Annotated[int, Field(ge=32, le=2048, multiple_of=32)]


class Model(Section):
    """A bottleneck ResNet (He et al. 2016): 1x1 reduce, 3x3, 1x1 expand, skip, global average pooling.

    With a `start` its depth, width, stem, variant and scaled_channels are those of the start: leave them out. Of a 3-D
    start it has the kernels, too.
    """

    start: str = SCRATCH
    """What training begins with. scratch: weights drawn from the seed. A name of `medopt weights list`, a file of
    weights (.safetensors, .pth, .onnx), the folder of a run or a release, or models:/STUDY@champion of MLflow's
    registry: pretrained ones.
    auto: the best-fitting of the catalogue that lies on this disk, else scratch."""
    start_digest: str = ""
    """SHA-256 of the start's file: filled in by the run; weights with another digest are refused."""
    partial: bool = False
    """Take a start although under 90 % of the backbone's weights are in it."""
    depth: Literal[14, 26, 50, 101, 152] = 26
    """Layers of the network; a deeper one needs more training images."""
    width: Width = 0.25
    """Factor on all channel counts; 1 is the published ResNet. Five numbers: of the stem and of the four stages."""
    stem: Literal["auto", "small", "medium", "large", "deep", "full", "slices"] = "auto"
    """small: 3x3 stride 1; medium: 3x3 stride 2; large: 7x7 stride 2 and max pooling, the published one; deep: three
    3x3 in place of the 7x7; full and slices: as starts of MONAI and I3ResNet have it. auto: by the shortest side of the
    image, so that the last blocks still see 3 x 3 positions or more; with strides: auto by the longest."""
    strides: PerAxis = "isotropic"
    """isotropic: the network halves all axes alike. auto: by prepare.size and prepare.spacing_mm, so that an axis of
    thick slices is not halved before the others have caught up (nnU-Net's rule), and none of which fewer than 3
    positions would be left. Or five lists of a number an axis: of the stem's convolution, its pooling, and of layer2,
    layer3 and layer4."""
    kernels: PerAxis = "isotropic"
    """isotropic: as far along all axes. auto: one slice wide along an axis of thick slices, until the others have
    caught up. Or five lists of a number an axis: of the stem's convolution and of the four stages' 3x3. A 3-D start
    decides them."""
    variant: Literal["pooled", "v1", "caffe", "v1.5", "d", "dilated"] = "pooled"
    """Where the stride of a block sits, and what its skip projects. pooled: on the 3x3; means of 3x3 positions. v1.5:
    on the 3x3; every second position (torchvision). v1: on the first 1x1 (2016, Keras). caffe: v1, and the stem pools
    without padding. d: on the 3x3; means of 2x2 positions (ResNet-D, timm). dilated: the last two stages reach further
    instead of having a stride (MedicalNet)."""
    head: Literal["auto", "last", "every_depth"] = "auto"
    """What the linear layer at the end reads. last: the means of the last block. every_depth: those of the stem and of
    all blocks. auto: every_depth with a start, else last."""
    scaled_channels: int = Field(0, ge=0)
    """Channels that an affine layer makes of the image before the stem, in the scale that the start was trained in; 0:
    no such layer."""
    mirrored: bool = False
    """Answer with the mean over the image and its mirror from left to right, in twice the time."""
    init: Literal["he", "xavier"] = "he"
    """How the first weights are drawn: He et al. 2015, or Glorot & Bengio 2010."""
    zero_init_residual: bool = True
    """The last normalization of a block starts at 0, so each block starts as the identity (Goyal et al. 2017)."""
    dropout: Fraction = 0.0
    """Share of the pooled features that is set to zero in training, before the linear layer."""
    pooling: Literal["none", "mean", "attention", "top_k"] = "none"
    """none: the network sees the whole image. Else it sees tiles of a large image, or the slices of a volume, one by
    one, and this makes one answer of them. mean: of all. attention: a mean whose weights are learned (Ilse et al.
    2018). top_k: of the few that speak most for the finding. Tiles of padding alone do not count."""
    tile: Annotated[list[_TileSide], Field(min_length=2, max_length=2)] | None = None
    """pooling of images: [height, width] of a tile, multiples of 32, as in [512, 512]."""
    slices: int = Field(1, ge=1, le=15)
    """pooling of volumes: so many neighbouring slices are seen together, as channels of a 2-D network (2.5-D)."""
    global_view: bool = False
    """pooling of images: the whole image, shrunk to the size of a tile, is one tile more."""
    top_k: int = Field(4, ge=1)
    """pooling top_k: how many tiles or groups of slices make the answer."""
    tiles_at_once: Literal["auto"] | Annotated[int, Field(ge=2)] = "auto"
    """pooling: so many tiles or groups of slices pass the network together, and the backward pass computes them again:
    the memory of training is that of so many, however large the image. Batch normalization sees so many. auto: as many
    as have four million pixels, 16 of 512 x 512."""

    @model_serializer(mode="wrap")
    def _without_tiles(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A network of the whole image is described as by versions that knew no other."""
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if k not in TILING} if self.pooling == "none" else values

    @model_validator(mode="after")
    def _read_by_the_pooling(self) -> Self:
        unread = TILING[1:] if self.pooling == "none" else ("top_k",) if self.pooling != "top_k" else ()
        changed = [key for key in unread if getattr(self, key) != type(self).model_fields[key].default]
        if changed:
            which = "top_k" if changed == ["top_k"] else "mean, attention or top_k"
            raise ValueError(f"{changed[0]} is read with pooling: {which}; here it is {self.pooling}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _skip_of_older_studies(cls, raw: Any) -> Any:
        """Version 0.1.0 called the variant `skip`, pooled or strided."""
        if isinstance(raw, dict) and raw.get("skip") in ("pooled", "strided") and "variant" not in raw:
            kept = {key: value for key, value in raw.items() if key != "skip"}
            return {**kept, "variant": "pooled" if raw["skip"] == "pooled" else "v1.5"}
        return raw

    @property
    def has_start(self) -> bool:
        """Whether training begins with weights from elsewhere; `auto` must be resolved before."""
        return self.start != SCRATCH

    def architecture(self) -> dict[str, Any]:
        """The arguments of `medopt.build_resnet` that this section gives."""
        chosen = self.model_dump(exclude={"start", "start_digest", "partial", "head", *TILING})
        head = ("every_depth" if self.has_start else "last") if self.head == "auto" else self.head
        return {**chosen, "head": head}


class FineTune(Section):
    """How the weights of a start are tuned; a study from scratch reads none of it."""

    freeze: Literal["nothing", "stem", "layer1", "layer2", "layer3", "all"] = "all"
    """Layers up to this stage keep the start's weights. all: only the linear layer at the end is fitted, in a minute
    and without epochs; it is the bar that tuning has to beat. Else training begins with that linear model, and it goes
    on where tuning does not beat it on validation."""
    layer_decay: Fraction = 0.7
    """Factor on the learning rate a stage further from the end (ELECTRA, Clark et al. 2020)."""
    statistics: Literal["frozen", "live"] = "frozen"
    """Of the batch normalizations. frozen: the start's, also in training. live: each batch's, as from scratch."""
    toward_start: float = Field(0, ge=0)
    """Weight decay toward the start's weights instead of toward zero (L2-SP, Li et al. 2018); 0 is off."""
