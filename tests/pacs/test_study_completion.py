"""When a study is complete, with a clock of its own."""

from __future__ import annotations

from medopt.pacs.study_processing import StudyCompletion


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_study_is_complete_when_it_is_quiet_and_nobody_is_connected() -> None:
    clock, connected = Clock(), [True]
    completion = StudyCompletion(10, clock)
    is_open = lambda: connected[0]  # noqa: E731
    completion.image_received("1.2", is_open)
    clock.now += 50
    assert not completion.is_complete("1.2")  # a slow sender between two images
    connected[0] = False
    assert not completion.is_complete("1.2")
    clock.now += 9.9
    assert not completion.is_complete("1.2")
    clock.now += 0.2
    assert completion.is_complete("1.2")


def test_each_image_restarts_the_wait_and_studies_do_not_wait_for_each_other() -> None:
    clock = Clock()
    completion = StudyCompletion(10, clock)
    completion.image_received("1.2", lambda: False)
    clock.now += 6
    completion.image_received("1.2", lambda: False)
    completion.image_received("1.3", lambda: True)
    clock.now += 6
    assert not completion.is_complete("1.2")
    clock.now += 6
    assert (completion.is_complete("1.2"), completion.is_complete("1.3")) == (True, False)


def test_after_a_start_the_wait_begins_anew() -> None:
    clock = Clock()
    completion = StudyCompletion(10, clock)
    assert not completion.is_complete("1.2")
    clock.now += 10
    assert completion.is_complete("1.2")
    completion.forget("1.2")
    assert not completion.is_complete("1.2")
