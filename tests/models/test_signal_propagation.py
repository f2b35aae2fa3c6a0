"""What initialization, BatchNorm and skips do to the scale of activations and gradients by depth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medopt.config import Study
from medopt.models import build_model
from medopt.models.signal_propagation import Scale, Variant, blocks_of, build_variant, measure_scale, variants


def scale_of(study: Study, variant: Variant) -> Scale:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(8, 1, *study.prepare.size, generator=generator)
    target = (torch.arange(8) % 2).float()[:, None]
    return measure_scale(build_variant(study, variant), image, target, F.binary_cross_entropy_with_logits)


@pytest.fixture(scope="module")
def study(tiny_study: Callable[..., Study]) -> Study:
    return tiny_study(model={"stem": "medium"}, prepare={"size": [32, 32]})


def spread(values: tuple[float, ...]) -> float:
    return max(values) / min(values)


def test_the_plain_deep_net_explodes_and_the_residual_one_keeps_its_scale(study: Study) -> None:
    plain = scale_of(study, Variant(152, "he", skip=False))
    usual = scale_of(study, Variant(152, "he", zero_init=True))
    assert len(plain.activation) == len(usual.gradient) == 50
    assert plain.ratio > 1e6 and plain.gradient[0] > 1e6 * plain.gradient[-1]
    assert usual.ratio < 100 and spread(usual.gradient) < 100 and spread(usual.activation) < 3


def test_depth_is_what_does_it(study: Study) -> None:
    shallow, deep = (scale_of(study, Variant(depth, "he", skip=False)) for depth in (26, 152))
    assert shallow.ratio < 1e3 < 1e-3 * deep.ratio


def test_without_normalization_xavier_vanishes_where_he_lasts(study: Study) -> None:
    he, xavier = (scale_of(study, Variant(152, init, skip=False, norm=False)) for init in ("he", "xavier"))
    assert xavier.activation[-1] < 1e-15 * xavier.activation[0]
    assert he.activation[-1] > 1e-7 * he.activation[0]


def test_without_normalization_skips_alone_explode_and_the_scalar_at_zero_keeps_the_scale(study: Study) -> None:
    skips = scale_of(study, Variant(152, "he", norm=False))
    scalar = scale_of(study, Variant(152, "he", norm=False, zero_init=True))
    assert skips.activation[-1] > 1e3 * skips.activation[0]
    assert spread(scalar.activation) < 30


def test_the_usual_variant_is_the_studys_own_network(study: Study) -> None:
    own, variant = build_model(study), build_variant(study, Variant(26, "he", zero_init=True))
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), variant.parameters(), strict=True))


def test_measuring_leaves_weights_gradients_and_hooks_as_they_were(study: Study) -> None:
    model = build_variant(study, Variant(26, "he"))
    before = [parameter.clone() for parameter in model.parameters()]
    image, target = torch.rand(4, 1, 32, 32), torch.zeros(4, 1)
    measure_scale(model, image, target, F.binary_cross_entropy_with_logits)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(block._forward_hooks for block in blocks_of(model))


def test_the_figures_are_those_of_the_definition(study: Study) -> None:
    """The last block's output and its gradient, computed without hooks."""
    model = build_variant(study, Variant(26, "he"))
    image, target = torch.rand(4, 1, 32, 32), torch.ones(4, 1)
    found = measure_scale(model, image, target, F.binary_cross_entropy_with_logits)
    features = nn.Sequential(model.conv1, model.bn1, model.act, model.layer1, model.layer2, model.layer3, model.layer4)  # type: ignore[arg-type]
    out = features(image)
    out.retain_grad()
    F.binary_cross_entropy_with_logits(model.fc(model.avgpool(out).flatten(1)), target).backward()
    assert found.activation[-1] == pytest.approx(float(out.detach().std()), rel=1e-4)
    assert out.grad is not None and found.gradient[-1] == pytest.approx(float(out.grad.norm()), rel=1e-4)
    first = torch.cat([p.grad.flatten() for p in blocks_of(model)[0].parameters() if p.grad is not None])
    assert found.weights[0] == pytest.approx(float(first.norm()), rel=1e-3)


def test_a_volume_is_measured_as_an_image_is(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study(prepare={"size": [8, 8, 8]})
    assert len(scale_of(study, Variant(26, "xavier", norm=False, skip=False)).weights) == 8


def test_a_plain_net_that_starts_at_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="carries no signal"):
        Variant(26, "he", skip=False, zero_init=True)
    assert len({net.name for net in variants(26, "he")}) == 6
