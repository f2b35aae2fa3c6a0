"""Stacks exactly at their limits, from frames made by hand: places, steps, tilt, spacing and orientation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from medopt.core.errors import DataError
from medopt.imaging.dicom_frames import FramePlane, FramePose
from medopt.imaging.stack import Stack, stack_frames

PATH = Path("series")
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def plane(name: str, position: Sequence[float] | None, **changes: object) -> FramePlane:
    right, down = changes.pop("directions", AXIAL)  # type: ignore[misc]
    pose = None if position is None else FramePose(np.array(position, float), np.array(right), np.array(down))
    values = {
        **{"name": name, "header": Dataset(), "size": (4, 5), "spacing": (0.5, 0.7), "spacing_source": "PixelSpacing"},
        "pose": pose,
    }
    return FramePlane(**(values | changes))  # type: ignore[arg-type]


def stack(*positions: Sequence[float]) -> Stack:
    return stack_frames([plane(f"f{at}", position) for at, position in enumerate(positions)], PATH)


def refusal(*planes: FramePlane) -> str:
    with pytest.raises(DataError) as found:
        stack_frames(planes, PATH)
    return str(found.value)


def refused(*positions: Sequence[float]) -> str:
    return refusal(*(plane(f"f{at}", position) for at, position in enumerate(positions)))


def line(*heights: float) -> list[tuple[float, float, float]]:
    return [(3.0, 4.0, height) for height in heights]


def test_order_step_and_affine_by_hand() -> None:
    found = stack(*line(10, 4, 7))
    assert found.order == (1, 2, 0)
    assert found.facts == {}
    expected = [[0, 0, 0.7, 3], [0, 0.5, 0, 4], [3, 0, 0, 4], [0, 0, 0, 1]]  # slice, row, column to x, y, z
    np.testing.assert_allclose(found.affine, expected, atol=1e-12)


def test_the_order_is_toward_the_head_whichever_way_the_frames_face() -> None:
    turned = ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))  # the normal points to the feet
    planes = [plane(f"f{at}", (0, 0, height), directions=turned) for at, height in enumerate((2.0, 1.0, 3.0))]
    assert stack_frames(planes, PATH).order == (1, 0, 2)


def test_a_slice_may_be_off_its_place_by_a_tenth_of_the_spacing() -> None:
    for off in (-0.099, 0.099):
        stack(*line(0, 1 + off, 2, 3, 4))
    for off in (-0.11, 0.11):
        text = refused(*line(0, 1 + off, 2, 3, 4))
        assert "uneven slice positions" in text
        assert "slices 1.00 mm apart, more than 10% of that off its place: f1 by 0.11 mm" in text
    text = refused(*line(0, 1.11, 2, 2.8, 4))
    assert "f3 by 0.20 mm; f1 by 0.11 mm" in text or "f3 by 0.20 mm, f1 by 0.11 mm" in text  # the worst first


def test_a_slice_may_lie_beside_the_line_by_a_tenth_of_the_step() -> None:
    def beside(by: float) -> list[tuple[float, float, float]]:
        return [(0, 0, 0), (by, 0, 2), (0, 0, 4), (0, 0, 6)]

    stack(*beside(0.19))
    text = refused(*beside(0.21))
    assert "slices shifted sideways unevenly" in text
    assert "f1 by 0.21 mm" in text


def test_a_gap_is_more_than_one_and_a_half_steps() -> None:
    text = refused(*line(0, 1, 2, 3.51, 4.51, 5.51))
    assert "a gap in the series, whose slices are 1.00 mm apart: 1.51 mm between f2 and f3" in text
    assert "a gap" not in refused(*line(0, 1, 2, 3.5, 4.5, 5.5))


def test_two_slices_in_one_place_are_a_thousandth_of_a_millimetre_apart() -> None:
    text = refused(*line(0, 1, 1.0005, 2))
    assert "1 slices lie in the place of another: f1 and f2" in text
    assert "place of another" not in refused(*line(0, 1, 1.002, 2))


def test_spacings_may_differ_by_a_thousandth_of_a_millimetre() -> None:
    def mixed(spacing: float) -> list[FramePlane]:
        return [*(plane(f"f{at}", (0, 0, at)) for at in range(3)), plane("odd", (0, 0, 3), spacing=(0.5, spacing))]

    stack_frames(mixed(0.7009), PATH)
    assert "mixed pixel spacing" in refusal(*mixed(0.7011))
    text = refusal(*mixed(0.73))  # 1.00 mm against 1.03 mm would be one in 30
    assert "3 frames have 0.5\\0.7, others differ: odd (0.5\\0.73)" in text
    text = refusal(plane("odd", (0, 0, 9), size=(4, 6)), *(plane(f"f{at}", (0, 0, at)) for at in range(3)))
    assert "mixed size" in text and "3 frames have 4\\5, others differ: odd (4\\6)" in text


def test_directions_may_differ_by_a_thousandth() -> None:
    def turned(sine: float) -> list[FramePlane]:
        cosine = (1 - sine**2) ** 0.5
        about = ((cosine, sine, 0.0), (-sine, cosine, 0.0))
        return [*(plane(f"f{at}", (0, 0, at)) for at in range(3)), plane("odd", (0, 0, 3), directions=about)]

    stack_frames(turned(0.0009), PATH)
    assert "mixed orientation" in refusal(*turned(0.0011))
    assert "mixed orientation" in refusal(*turned(np.sin(np.radians(2))))


@pytest.mark.parametrize("side", [0, 1])
def test_a_tilt_is_said_from_a_tenth_of_a_degree_and_refused_beyond_45(side: int) -> None:
    def tilted(degrees: float) -> list[tuple[float, float, float]]:
        slide = 2 * np.tan(np.radians(degrees))
        return [(slide * at, 0, 2 * at) if side == 0 else (0, -slide * at, 2 * at) for at in range(4)]

    assert stack(*tilted(0.09)).facts == {}
    assert stack(*tilted(0.11)).facts == {"tilt_degrees": "0.11"}
    assert stack(*tilted(2)).facts == {"tilt_degrees": "2.00"}
    assert stack(*tilted(44.9)).facts == {"tilt_degrees": "44.90"}
    assert "slide sideways by 46 degrees" in refused(*tilted(45.6))
    affine = stack(*tilted(30)).affine
    assert affine[side, 0] == pytest.approx((1 - 2 * side) * 2 * np.tan(np.radians(30)))
    assert affine[2, 0] == pytest.approx(2)


def test_frames_without_a_place_and_scouts_are_named() -> None:
    text = refusal(plane("a", (0, 0, 0)), plane("b", None), plane("c", None))
    assert "holds 3 frames, and 2 of them have no usable" in text
    assert ": b, c." in text or ": b; c." in text
    scout = Dataset()
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    text = refusal(plane("a", (0, 0, 0)), plane("s", (0, 0, 1), header=scout))
    assert "a scout (ImageType LOCALIZER) lies among the slices: s" in text
    scouts = [plane(f"s{at}", (0, 0, at), header=scout) for at in range(3)]
    assert stack_frames(scouts, PATH).order == (0, 1, 2)  # a series of scouts alone
    one = plane("b", (0, 0, 1), spacing_source="ImagerPixelSpacing")
    assert "no usable PixelSpacing" in refusal(plane("a", (0, 0, 0)), one, plane("c", (0, 0, 2)))
