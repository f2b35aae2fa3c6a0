"""Which images a pretraining may learn from: none that a study tests on, nor any of their patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medopt.core.errors import DataError, listed
from medopt.core.records import Case
from medopt.core.reporter import Reporter
from medopt.data.images_seen import ImageContent, read_content
from medopt.data.leave_out import LeftOut, leave_out
from medopt.manifest.findings import display_name
from medopt.manifest.unlabelled import UnlabelledImages

MIN_IMAGES = 8


@dataclass(frozen=True, slots=True)
class ImageSelection:
    """What is learned from: `learn` with `content`, what only the probe sees, and what stays out."""

    learn: tuple[Case, ...]
    content: tuple[ImageContent, ...]
    judge: tuple[Case, ...]
    left_out: LeftOut
    unusable: int
    of_test: int


@dataclass(frozen=True, slots=True)
class HeldOutImages:
    """The images that a study tests on, below `root`."""

    study: str
    cases: tuple[Case, ...]
    root: Path


def choose_images(images: UnlabelledImages, tests: Sequence[HeldOutImages], reporter: Reporter) -> ImageSelection:
    """The images of a source that may be learned from: not those of its own test and validation splits, nor of `tests`.

    Raises DataError where an image of `tests` cannot be read, or where fewer than MIN_IMAGES are left.
    """
    own = images.of_split("train")
    content = read_content(own, images.root, reporter)
    usable = [row for row, one in enumerate(content) if not one.facts.problem]
    if len(usable) < len(own):
        bad = [f"{display_name(own[row])}: {one.facts.problem}" for row, one in enumerate(content) if one.facts.problem]
        reporter.message(f"{len(bad)} of {len(own)} images cannot be used: {listed(bad, 3)}")
    cases, content = [own[row] for row in usable], [content[row] for row in usable]
    test_cases, test_content = _read_tests(tests, reporter)
    test_cases += images.of_split("test")  # their content was kept apart by the manifest; their patients go, too
    left = leave_out(cases, content, test_cases, test_content)
    selection = ImageSelection(
        tuple(cases[row] for row in left.remaining), tuple(content[row] for row in left.remaining),
        tuple(images.of_split("val")), left, len(own) - len(usable), len(images.of_split("test")),
    )  # fmt: skip
    if len(selection.learn) < MIN_IMAGES:
        raise DataError(
            f"{len(selection.learn)} images are left to learn from, of {len(images.cases)} ({selection.unusable} "
            f"cannot be used, {selection.of_test} are in the split test, {len(selection.judge)} in val, "
            f"{len(cases) - len(left.remaining)} are left out for other studies); {MIN_IMAGES} are the least, "
            "thousands are worth it."
        )
    return selection


def _read_tests(tests: Sequence[HeldOutImages], reporter: Reporter) -> tuple[list[Case], list[ImageContent]]:
    cases: list[Case] = []
    content: list[ImageContent] = []
    for test in tests:
        found = read_content(test.cases, test.root, reporter)
        bad = [
            f"{display_name(c)}: {i.facts.problem}" for c, i in zip(test.cases, found, strict=True) if i.facts.problem
        ]
        if bad:
            raise DataError(
                f"{len(bad)} test images of the study {test.study} cannot be read, so they cannot be left out by what "
                f"they show: {listed(bad, 3)}. Give the folder of its images with MEDOPT_DATA."
            )
        cases, content = [*cases, *test.cases], [*content, *found]
    return cases, content
