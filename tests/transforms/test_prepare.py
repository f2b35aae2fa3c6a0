from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from real_data import real

from medopt.config import Intensity, Prepare
from medopt.config.study_file import load_study
from medopt.core.errors import DataError
from medopt.core.records import Volume
from medopt.transforms import prepare
from medopt.transforms import resize as resize_module
from medopt.transforms.percentiles import _SAMPLE, percentiles
from medopt.transforms.prepare import LUMINANCE, ClipIntensity, PrepareChain, ToUnitRange

PIPELINES = Path(__file__).parents[2] / "pipelines"
STEP = 1 / 65535  # of the chain's values


def volume(array: Any, **facts: Any) -> Volume:
    values = np.asarray(array, np.float32)
    return Volume(values, np.eye(4), facts.pop("spacing_mm", (1.0,) * (values.ndim - 1)), **facts)


def chain(**settings: Any) -> PrepareChain:
    return PrepareChain(Prepare.model_validate({"size": [16, 16], **settings}))


def mapped(array: Any, intensity: dict[str, Any], **facts: Any) -> np.ndarray:
    return ToUnitRange()(ClipIntensity(Intensity.model_validate(intensity))(volume(array, **facts))).array


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(100, 20, 500_000),
        np.random.default_rng(0).gamma(2, 30, 300_000),
        np.random.default_rng(0).integers(0, 4096, 300_000),
        np.append(np.random.default_rng(0).normal(0, 1, 400_000), [-50, 50]),
    ],
    ids=["normal", "skewed", "12 bits", "two outliers"],
)
@pytest.mark.parametrize("q", [(0.5, 99.5), (0, 100), (1, 50)])
def test_percentiles_of_a_large_array_are_numpys(values: np.ndarray, q: tuple[float, float]) -> None:
    found = percentiles(values.astype(np.float32), *q)
    expected = np.percentile(values, q)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_percentiles_are_right_where_the_sample_is_misled() -> None:
    """Every sampled value is the largest, so that nothing of the low end is foreseen."""
    values = np.random.default_rng(0).random(1_000_000, np.float32)
    values[:: len(values) // _SAMPLE + 1] = 2
    np.testing.assert_allclose(percentiles(values, 0.5, 99.9), np.percentile(values, [0.5, 99.9]), rtol=1e-6)


def test_one_extreme_voxel_does_not_move_the_percentiles() -> None:
    values = np.random.default_rng(0).uniform(0, 112, 250_000).astype(np.float32)
    clean = np.percentile(values, [0.5, 99.5])
    values[1234] = 1.7e6
    np.testing.assert_allclose(percentiles(values, 0.5, 99.5), clean, atol=0.01)
    assert mapped(values.reshape(1, 500, 500), {"method": "percentiles"}).mean() == pytest.approx(0.5, abs=0.01)


def test_percentiles_of_a_small_array_are_exact_and_of_a_constant_one_its_value() -> None:
    values = np.random.default_rng(0).random(1000).astype(np.float32)
    assert percentiles(values, 2, 97) == tuple(float(v) for v in np.percentile(values, [2, 97]))
    assert percentiles(np.full(300_000, 7, np.float32), 1, 99) == (7, 7)


def test_range_maps_hounsfield_units() -> None:
    found = mapped([[[-2000, -1000, 0, 1000, 3000]]], {"method": "range", "low": -1000, "high": 1000})
    np.testing.assert_allclose(found, [[[0, 0, 0.5, 1, 1]]], atol=STEP)


def test_window_maps_center_and_width_of_the_scan() -> None:
    found = mapped([[[-200, -110, 40, 190, 900]]], {"method": "window"}, window=(40, 300))
    np.testing.assert_allclose(found, [[[0, 0, 0.5, 1, 1]]], atol=STEP)


def test_minmax_maps_the_extremes() -> None:
    np.testing.assert_allclose(mapped([[[5, 10, 25]]], {"method": "minmax"}), [[[0, 0.25, 1]]], atol=STEP)


def test_a_scan_without_a_window_is_refused_where_the_study_maps_by_it() -> None:
    with pytest.raises(DataError, match="names no window"):
        mapped([[[0, 1]]], {"method": "window"})


METHODS = [
    {"method": "percentiles"},
    {"method": "minmax"},
    {"method": "window"},
    {"method": "range", "low": 0, "high": 9},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["method"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [20, 460])
def test_values_that_are_not_finite_are_refused_by_every_method(method: dict[str, Any], bad: float, side: int) -> None:
    array = np.random.default_rng(0).random((1, side, side))
    array[0, 3, 4] = bad
    with pytest.raises(DataError, match="not finite"):
        mapped(array, method, window=(0.5, 1))


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda m: m["method"])
def test_a_constant_image_becomes_black(method: dict[str, Any]) -> None:
    assert not mapped(np.full((1, 9, 9), 42), method).any()


def test_an_image_whose_range_is_empty_is_refused_rather_than_made_black() -> None:
    array = np.zeros((1, 40, 40))
    array[0, 20, 20] = 100
    with pytest.raises(DataError, match=r"from 0 to 100.*range for 0 to 1 is empty"):
        mapped(array, {"method": "percentiles"})


def test_the_volume_given_is_left_as_it_was() -> None:
    given = volume(np.random.default_rng(0).random((1, 30, 30)))
    before = given.array.copy()
    chain()(given)
    np.testing.assert_array_equal(given.array, before)


def test_colour_becomes_luminance() -> None:
    colour = np.random.default_rng(0).random((3, 16, 16))
    grey = np.tensordot(LUMINANCE, colour, axes=1)[None]
    settings = {"method": "range", "low": 0, "high": 1}
    found = chain(intensity=settings)(volume(colour))
    np.testing.assert_allclose(found, grey, atol=STEP)
    assert sum(LUMINANCE) == pytest.approx(1)


def test_grey_is_repeated_for_three_channels_and_colour_is_kept() -> None:
    grey = chain(channels=3)(volume(np.random.default_rng(0).random((1, 16, 16))))
    assert grey.shape == (3, 16, 16) and torch.equal(grey[0], grey[2])
    colour = chain(channels=3)(volume(np.random.default_rng(0).random((3, 16, 16))))
    assert not torch.equal(colour[0], colour[2])


def test_two_channels_are_refused() -> None:
    with pytest.raises(DataError, match="has 2 channels"):
        chain()(volume(np.ones((2, 16, 16))))


def test_spacing_is_resampled_before_fitting() -> None:
    ramp = np.broadcast_to(np.arange(40.0), (1, 40, 40))
    settings = {"spacing_mm": [1.0, 2.0], "fit": "crop_or_pad", "intensity": {"method": "minmax"}}
    found = chain(**settings)(volume(ramp, spacing_mm=(0.5, 0.5)))
    # 40 pixels of 0.5 mm are 20 rows of 1 mm and 10 columns of 2 mm: columns are padded, rows are cut.
    assert torch.equal((found[0] > 0).any(0).nonzero().flatten(), torch.arange(3, 13))
    assert (found[0] > 0).any(1).all()


@pytest.mark.parametrize("spacing", [None, [1.0, 1.0, 1.0]])
def test_an_image_is_refused_where_the_study_takes_volumes(spacing: list[float] | None) -> None:
    with pytest.raises(DataError, match=r"single image.*takes 3-D"):
        chain(size=[8, 8, 8], spacing_mm=spacing)(volume(np.random.default_rng(0).random((1, 9, 9))))


def test_a_volume_is_refused_where_the_study_takes_images() -> None:
    with pytest.raises(DataError, match=r"a volume.*takes 2-D"):
        chain(spacing_mm=[1.0, 1.0])(volume(np.random.default_rng(0).random((1, 9, 9, 9))))


def test_resampling_needs_a_spacing_that_the_scan_names() -> None:
    scan = volume(np.random.default_rng(0).random((1, 9, 9)), source={"spacing": "unknown: 1.0 is assumed"})
    with pytest.raises(DataError, match="does not say how large its pixels are"):
        chain(spacing_mm=[1.0, 1.0])(scan)
    assert chain()(scan).shape == (1, 16, 16)


def test_a_refusal_keeps_its_own_words_and_names_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 9, 9, 9), np.float32))
    with pytest.raises(DataError) as refused:
        chain()(tmp_path / "a.npz#images/1")
    assert str(refused.value).startswith(f"{tmp_path}/a.npz#images/1: The scan is a volume")
    assert refused.value.__suppress_context__


def test_an_error_that_is_no_refusal_is_not_dressed_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(prepare, "resize", broken)
    with pytest.raises(RuntimeError) as raised:
        chain()(volume(np.random.default_rng(0).random((1, 9, 9))))
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_file_gives_what_its_pixels_give(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = chain()(tmp_path / "a.png")
    assert torch.equal(found, chain()(volume(pixels[None])))
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert found.min() == 0 and found.max() <= 1
    with pytest.raises(DataError, match=r"missing\.png"):
        chain()(tmp_path / "missing.png")


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    # A release is refused where this differs: change it only together with CHAIN_VERSION or the settings.
    assert chain().fingerprint.startswith("daba8db3b3c2a525")


@pytest.mark.parametrize(
    ("study", "fingerprint"),
    [
        ("phantom", "06b58ec76f3bb2ed98bf52692f34e387aa19a2f19ac24d70b779d4b2a2221ac6"),
        ("breastmnist", "a0511dbe64232d51cd33d7bca9ca080b96b94d50d2e089381ef0a64064661518"),
        ("busi", "09163a5924bda57f1a98206dd560c12cda9ea06243f33672a2da58dc1a013577"),
        ("hippocampus", "eec53b90dbe98594711e12b370364184cf958f1d50272faf03bec2adf41fef95"),
    ],
)
def test_the_fingerprints_of_version_0_1_0_still_hold(study: str, fingerprint: str) -> None:
    """Another fingerprint refuses every release and every prepared image there is."""
    assert PrepareChain(load_study(PIPELINES / f"{study}.yaml").prepare).fingerprint == fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"size": [16, 17]},
        {"channels": 3},
        {"spacing_mm": [1, 1]},
        {"fit": "stretch"},
        {"intensity": {"method": "minmax"}},
        {"intensity": {"low": 1}},
        {"intensity": {"high": 99}},
        {"nan": "background"},
    ],
    ids=str,
)
def test_every_setting_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert chain(**change).fingerprint != chain().fingerprint


def test_a_new_version_of_the_chain_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = chain().fingerprint
    monkeypatch.setattr(prepare, "CHAIN_VERSION", prepare.CHAIN_VERSION + 1)
    assert chain().fingerprint != before


def test_padding_counts_in_no_statistic_and_is_black() -> None:
    values = np.random.default_rng(0).uniform(500, 3500, (1, 64, 64)).astype(np.float32)
    padded, background = values.copy(), np.zeros((64, 64), bool)
    background[:, :8] = True
    padded[:, background] = 65535
    for method in METHODS[:2]:
        plain = mapped(values[..., 8:], method)
        found = mapped(padded, method, background=background)
        np.testing.assert_allclose(found[..., 8:], plain, atol=STEP)
        assert not found[..., :8].any()
    for method in METHODS[2:]:
        assert not mapped(padded, method, background=background, window=(2000, 100))[..., :8].any()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", lambda x: (x - (40 - 0.5)) / (10 - 1) + 0.5),
        ("LINEAR_EXACT", lambda x: (x - 40) / 10 + 0.5),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 40) / 10))),
    ],
)
def test_the_window_is_applied_by_its_function(function: str, expected: Any) -> None:
    """The formulas of PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2."""
    values = np.linspace(20, 60, 81)
    found = mapped(values[None, None], {"method": "window"}, window=(40, 10), window_function=function)
    np.testing.assert_allclose(found[0, 0], np.clip(expected(values), 0, 1), atol=2 * STEP)


def test_a_linear_window_of_width_1_is_a_step() -> None:
    found = mapped([[[39, 39.5, 40, 41]]], {"method": "window"}, window=(40, 1), window_function="LINEAR")
    assert found.tolist() == [[[0, 0, 1, 1]]]


def test_the_window_function_is_in_the_fingerprint_of_windowed_chains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    windowed, other = ({"method": "window"}, {"method": "minmax"})
    before = chain(intensity=windowed).fingerprint, chain(intensity=other).fingerprint
    monkeypatch.setattr(prepare, "WINDOW_VERSION", prepare.WINDOW_VERSION + 1)
    assert chain(intensity=windowed).fingerprint != before[0] and chain(intensity=other).fingerprint == before[1]


def test_nan_is_background_on_request() -> None:
    values = np.random.default_rng(0).normal(0, 1, (1, 24, 24))
    values[0, :6] = np.nan
    with pytest.raises(DataError, match=r"prepare\.nan: background"):
        chain(size=[24, 24])(volume(values))
    found = chain(size=[24, 24], nan="background")(volume(values))
    assert not found[:, :6].any() and float(found[:, 6:].mean()) == pytest.approx(0.5, abs=0.1)
    assert chain(nan="background").fingerprint != chain().fingerprint
    values[0, 10, 10] = np.inf
    with pytest.raises(DataError, match="not finite"):
        chain(size=[24, 24], nan="background")(volume(values))
    with pytest.raises(DataError, match=r"not a number \(NaN\), so it shows nothing"):
        chain(size=[24, 24], nan="background")(volume(np.full((1, 24, 24), np.nan)))


def disc(source: str = "PixelSpacing") -> Volume:
    """30 mm wide, in pixels of 0.8 mm by 0.4 mm."""
    y, x = np.indices((60, 120))
    inside = ((y - 30) * 0.8) ** 2 + ((x - 60) * 0.4) ** 2 < 225
    return volume(inside[None], spacing_mm=(0.8, 0.4), source={"spacing": source})


@pytest.mark.parametrize("source", ["PixelSpacing", "unknown: 1.0 along a row, PixelAspectRatio down a column"])
@pytest.mark.parametrize("fit", ["pad", "crop_or_pad"])
def test_a_disc_stays_a_disc_where_pixels_are_not_square(fit: str, source: str) -> None:
    found = chain(size=[96, 96], fit=fit)(disc(source))[0] > 0.5
    high, wide = int(found.any(1).sum()), int(found.any(0).sum())
    assert abs(high - wide) <= 1 and high > 55


def test_square_pixels_are_fitted_as_before_and_the_studys_own_spacing_is_kept() -> None:
    square = volume(disc().array, spacing_mm=(0.7, 0.7004))
    assert torch.equal(chain(size=[96, 96])(square), chain(size=[96, 96])(volume(disc().array)))
    found = chain(size=[96, 96], fit="crop_or_pad", spacing_mm=[0.8, 0.4])(disc())[0] > 0.5
    assert (int(found.any(1).sum()), int(found.any(0).sum())) == (37, 75)


@pytest.mark.parametrize(
    ("spacing", "says"),
    [((50.0, 1.0, 1.0), "too large"), ((0.001, 1.0, 1.0), "too small"), ((1.0, 60, 60), "too large")],
)
@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_wrong_spacing_is_refused_before_it_is_resampled(fit: str, spacing: tuple[float, ...], says: str) -> None:
    scan = volume(np.random.default_rng(0).random((1, 40, 64, 64)), spacing_mm=spacing)
    settings = {"size": [32, 32, 32], "spacing_mm": [0.02, 1.0, 1.0] if spacing[0] == 50 else [0.1, 0.2, 0.2]}
    with pytest.raises(DataError, match=rf"40 x 64 x 64 voxels of .* mm; at .*{says}"):
        chain(fit=fit, **settings)(scan)


def test_only_the_part_that_is_kept_is_resampled_where_all_of_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((1, 40, 50, 60)).cumsum(1).cumsum(2)
    settings = {"size": [16, 16, 16], "fit": "crop_or_pad", "spacing_mm": [0.5, 1.0, 2.0]}
    settings["intensity"] = {"method": "minmax"}
    scan = volume(values, spacing_mm=(1.0, 1.0, 1.0))
    whole = chain(**settings)(scan)
    monkeypatch.setattr(resize_module, "MAX_VOXELS", 90_000)
    np.testing.assert_allclose(chain(**settings)(scan), whole, atol=2e-3)
    monkeypatch.setattr(resize_module, "MAX_VOXELS", 1_000)
    with pytest.raises(DataError, match="too large"):
        chain(**settings)(scan)


def test_real_mr_volumes_fill_the_range_whatever_their_largest_value() -> None:
    files = sorted(real("hippocampus").rglob("*.nii*"))
    images = [path for path in files if "label" not in str(path.parent).lower()][:6]
    for path in images:
        found = chain(size=[32, 48, 32])(path)
        assert 0.1 < float(found[found > 0].mean()) < 0.9, path.name
        assert float(found.max()) == pytest.approx(1, abs=0.05)


def test_each_window_is_a_channel_as_a_chain_of_its_own_would_give_it() -> None:
    """Also on another grid, where padding is black in every window, and with voxels that stay as they were."""
    scan = volume(np.random.default_rng(3).normal(0, 500, (1, 24, 20)), modality="CT")
    before = scan.array.copy()
    windows = [[-600, 1500], [50, 400]]
    both = chain(intensity={"method": "windows", "windows": windows})
    image = both(scan)
    alone = [
        chain(intensity={"method": "range", "low": low, "high": high})(scan)
        for low, high in ((-1350, 150), (-150, 250))
    ]
    torch.testing.assert_close(image, torch.cat(alone), rtol=0, atol=0)
    assert both.config.input_channels == len(image) == 2
    np.testing.assert_array_equal(scan.array, before)


def test_a_chain_without_windows_keeps_its_fingerprint_and_each_window_has_its_own() -> None:
    assert "windows" not in Intensity().model_dump()
    windows = [[-600, 1500], [50, 400]]
    fingerprints = {
        chain(intensity={"method": "windows", "windows": one}).fingerprint
        for one in (windows, [[-600, 1500], [50, 350]], windows[::-1])
    }
    assert len(fingerprints) == 3  # the order, too: it decides which channel is which


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"intensity": {"method": "windows"}}, "method: windows with 0 windows"),
        ({"intensity": {"windows": [[50, 400]]}}, "method: percentiles with 1 windows"),
        ({"intensity": {"method": "windows", "windows": [[50, 0]]}}, "greater than 0"),
        ({"channels": 3, "intensity": {"method": "windows", "windows": [[50, 400]]}}, "channels is 3"),
    ],
)
def test_windows_that_contradict_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chain(**settings)
