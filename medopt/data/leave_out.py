"""Images that must not be learned from, because a study tests on them or on their patients: found by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medopt.core.records import Case
from medopt.data.images_seen import ImageContent
from medopt.manifest.duplicates import copies_of


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Which images stay, by index; how many went: copies (the same bytes or pixels), near-copies, of their patients."""

    remaining: tuple[int, ...]
    copies: int = 0
    near_copies: int = 0
    of_their_patients: int = 0


def leave_out(
    cases: Sequence[Case], content: Sequence[ImageContent], test: Sequence[Case], test_content: Sequence[ImageContent]
) -> LeftOut:
    """Leave out what a study tests on: copies of its test images, near-copies, and all images of the same patients.

    A patient is the same where it has a copy among the test images, or the same pseudonym.
    """
    digests = frozenset[bytes]().union(*(one.digests for one in test_content))
    copies = {row for row, one in enumerate(content) if one.digests & digests}
    thumbnails = [thumbnail for one in test_content for thumbnail in one.thumbnails]
    own = [(row, one) for row, image in enumerate(content) if row not in copies for one in image.thumbnails]
    near = {own[at][0] for at in copies_of([thumbnail for _, thumbnail in own], thumbnails)}
    patients = {cases[row].patient_id for row in copies | near} | {case.patient_id for case in test}
    gone = copies | near
    related = {row for row, case in enumerate(cases) if case.patient_id in patients} - gone
    remaining = tuple(row for row in range(len(cases)) if row not in gone | related)
    return LeftOut(remaining, len(copies), len(near), len(related))
