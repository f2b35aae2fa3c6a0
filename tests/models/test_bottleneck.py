from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medopt.models import BottleneckLayer


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_works_alone(dims: int, stride: int) -> None:
    block = BottleneckLayer(128, 32, 256, spatial_dims=dims, stride=stride)
    space = (9, 12, 7)[:dims]
    out = block(torch.rand(2, 128, *space))
    assert out.shape == (2, 256, *(-(-n // stride) for n in space))
    reduce, spatial, expand, skip = 128 * 32, 32 * 32 * 3**dims, 32 * 256, 128 * 256
    assert numbers(block) == reduce + spatial + expand + skip + 2 * (32 + 32 + 256 + 256)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize(
    ("sizes", "stride", "identity"), [((64, 16, 64), 1, True), ((64, 16, 64), 2, False), ((64, 16, 80), 1, False)]
)
def test_the_skip_is_the_identity_where_the_shape_is_kept(
    sizes: tuple[int, int, int], stride: int, identity: bool
) -> None:
    assert isinstance(BottleneckLayer(*sizes, stride=stride).skip, nn.Identity) is identity


@pytest.mark.parametrize("dims", [2, 3])
def test_the_skip_with_a_stride_sees_all_places_where_it_is_pooled(dims: int) -> None:
    """A place that the published projection leaps over moves the pooled one, which still keeps a constant image."""
    space, between = (8, 8, 8)[:dims], (0, 0, *(3,) * dims)
    moved = {}
    for projects in ("pooled", "strided"):
        skip = BottleneckLayer(4, 2, 8, spatial_dims=dims, stride=2, projects=projects).skip
        image = torch.zeros(1, 4, *space, requires_grad=True)
        skip[:-1](image).sum().backward()  # type: ignore[index]
        moved[projects] = bool(image.grad is not None and image.grad[between])
        same = skip[:-1](torch.ones(1, 4, *space))  # type: ignore[index]
        torch.testing.assert_close(same, same[(..., *[slice(1)] * dims)].expand_as(same))
    assert moved == {"pooled": True, "strided": False}


def test_the_stride_sits_on_the_3x3_convolution() -> None:
    block = BottleneckLayer(8, 4, 16, stride=2)
    assert [conv.stride for conv in (block.reduce, block.spatial, block.expand)] == [(1, 1), (2, 2), (1, 1)]


def test_it_computes_the_sum_of_branch_and_skip() -> None:
    block = BottleneckLayer(6, 3, 6).eval()
    x = torch.randn(2, 6, 5, 5)
    for norm in (block.norm1, block.norm2, block.norm3):
        nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.weight)

    def normed(value: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        return F.batch_norm(value, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    branch = F.relu(normed(F.conv2d(x, block.reduce.weight), block.norm1))
    branch = F.relu(normed(F.conv2d(branch, block.spatial.weight, padding=1), block.norm2))
    branch = normed(F.conv2d(branch, block.expand.weight), block.norm3)
    torch.testing.assert_close(block(x), F.relu(branch + x))


def test_the_input_is_left_as_it_was() -> None:
    x = torch.randn(2, 6, 5, 5)
    before = x.clone()
    BottleneckLayer(6, 3, 6)(x)
    assert torch.equal(x, before)


def test_an_axis_of_one_place_is_enough() -> None:
    """A volume of few slices is one place thick before the last stage."""
    block = BottleneckLayer(4, 2, 8, spatial_dims=3, stride=2).eval()
    assert block(torch.rand(1, 4, 1, 6, 5)).shape == (1, 8, 1, 3, 3)
