"""The end of a study, with a clock of its own."""

from __future__ import annotations

from medopt.pacs.study_completion import StudyCompletion


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_study_ends_when_it_is_quiet_and_nobody_is_connected() -> None:
    clock, connected = Clock(), [True]
    quiet = StudyCompletion(10, clock)
    is_open = lambda: connected[0]  # noqa: E731
    quiet.heard("1.2", is_open)
    clock.now += 50
    assert not quiet.over("1.2")  # a slow sender between two images
    connected[0] = False
    assert not quiet.over("1.2")
    clock.now += 9.9
    assert not quiet.over("1.2")
    clock.now += 0.2
    assert quiet.over("1.2")


def test_each_image_begins_the_wait_anew_and_studies_do_not_wait_for_each_other() -> None:
    clock = Clock()
    quiet = StudyCompletion(10, clock)
    quiet.heard("1.2", lambda: False)
    clock.now += 6
    quiet.heard("1.2", lambda: False)
    quiet.heard("1.3", lambda: True)
    clock.now += 6
    assert not quiet.over("1.2")
    clock.now += 6
    assert (quiet.over("1.2"), quiet.over("1.3")) == (True, False)


def test_after_a_start_a_study_is_as_if_just_heard_of() -> None:
    clock = Clock()
    quiet = StudyCompletion(10, clock)
    assert not quiet.over("1.2")
    clock.now += 10
    assert quiet.over("1.2")
    quiet.forget("1.2")
    assert not quiet.over("1.2")
