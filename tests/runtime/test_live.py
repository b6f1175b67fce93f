"""A camera by a clock that tests turn: frames in time, and what happens if the maker is slow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from longtake.runtime.live import Live
from longtake.runtime.source import Frame

FPS = 10


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


def frames(count: int) -> list[Frame]:
    return [np.full((1, 1, 3), index, np.uint8) for index in range(count)]


def live(clock: Clock, budget: float = 1.0) -> Live:
    return Live(FPS, budget, depth=4, clock=clock, wait=clock.wait)


def test_frames_come_at_the_rate_of_the_run() -> None:
    clock = Clock()
    watch = live(clock)
    at = []
    for frame in watch.paced(frames(5), punctual=True):
        at.append((int(frame[0, 0, 0]), clock.now - 100))
        watch.made(1)
    assert at == [(i, pytest.approx(i / FPS)) for i in range(5)]
    assert watch.report().latency_p99 == 0 and watch.report().camera_waited == 0


def test_an_iterator_that_is_late_is_the_camera() -> None:
    clock = Clock()

    def slow() -> Iterator[Frame]:
        for frame in frames(5):
            clock.now += 0.3
            yield frame

    watch = live(clock)
    for _ in watch.paced(slow(), punctual=False):
        watch.made(1)
    assert watch.report().late == 0 and watch.report().latency_p99 == 0


@pytest.mark.parametrize("punctual", [True, False])
def test_a_camera_that_has_to_wait_had_its_frames_in_time(punctual: bool) -> None:
    """They count from when they would have come, so waiting hides nothing."""
    clock = Clock()
    watch = live(clock, budget=0.5)
    for index, _ in enumerate(watch.paced(frames(20), punctual)):
        if index == 9:
            clock.now += 2.0
        watch.made(1)
    report = watch.report()
    assert report.camera_waited == pytest.approx(2.0)
    # Frame 9 is made 2 s late; those behind it catch up by 0.1 s each, until the clock is theirs.
    assert report.late == 11 and report.latency_p99 == pytest.approx(2.0, rel=0.01)


def test_the_camera_is_no_more_than_its_depth_ahead_and_ends_when_it_is_told_to() -> None:
    taken = 0

    def endless() -> Iterator[Frame]:
        nonlocal taken
        while True:
            taken += 1
            yield frames(1)[0]

    watch = live(Clock())
    camera = watch.camera(endless(), punctual=False)
    assert taken == 0
    for _ in range(3):
        next(camera)
    assert taken <= 3 + 4 + 1
    watch.close()
    assert list(camera) == []
