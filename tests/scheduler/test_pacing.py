"""Deadlines and percentiles of live streams, by clocks that tests turn."""

from __future__ import annotations

import math
import random

import pytest

from longtake.scheduler.degrees import Degrees
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.pacing import Pace, Quantiles, least_latency
from longtake.scheduler.plan import Plan
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.strategies.stream import StreamBatch

FPS = 16
SPEC = ModelSpec(8, 2, 8, 16, 3, 2, 1024, block_frames=3)  # a block is 12 frames, the first one 9
WINDOW = Retention(12, 3, Positions.RELATIVE, recache=False)


def schedule(
    steps: int, apart: int = 1, together: int = 1, seconds: float | None = None
) -> Schedule:
    strategy = StreamBatch(WINDOW, steps, together, apart)
    return Schedule(strategy, Request((Cue(0, "x"),), seconds, 64, 64, FPS), SPEC, steps)


@pytest.mark.parametrize(
    ("steps", "apart", "stages", "frames"),
    [
        (1, 1, 1, 11),  # the first frame of a block waits for its last
        (2, 1, 1, 12 + 11),  # and for the block behind it
        (4, 1, 1, 3 * 12 + 11),
        (4, 2, 1, 6 * 12 + 11),
        (4, 2, 2, 8 * 12 + 11),  # with stages the flow is taken once two more have begun
    ],
)
def test_what_a_schedule_keeps_frames_waiting(
    steps: int, apart: int, stages: int, frames: int
) -> None:
    plan = Plan(Degrees(stages=stages))
    assert least_latency(schedule(steps, apart), plan) == frames / FPS


def test_blocks_that_are_made_together_wait_for_the_last_of_them() -> None:
    assert least_latency(schedule(1, together=4), Plan()) == (9 + 3 * 12 - 1) / FPS


def test_a_short_video_ends_before_blocks_wait_for_others() -> None:
    assert least_latency(schedule(4, seconds=1.0), Plan()) == 11 / FPS


def test_without_a_batch_a_block_waits_for_itself() -> None:
    request = Request((Cue(0, "x"),), None, 64, 64, FPS)
    assert least_latency(Schedule(Causal(WINDOW), request, SPEC, 8), Plan()) == 11 / FPS


def test_quantiles_are_right_to_a_percent_in_bounded_memory() -> None:
    found, drawn = Quantiles(), random.Random(1)
    values = [math.exp(drawn.uniform(-6, 3)) for _ in range(5000)]
    for value in values:
        found.add(value)
    values.sort()
    for share in (0.01, 0.5, 0.99, 1.0):
        true = values[max(0, math.ceil(share * 5000) - 1)]
        assert found.at(share) == pytest.approx(true, rel=0.006)
    assert len(found.counts) < 950
    assert Quantiles().at(0.5) == 0
    found = Quantiles()
    found.add(1e-7)
    assert found.at(0.99) == 0


def test_frames_in_time_show_no_jitter_though_they_are_made_in_bursts() -> None:
    pace = Pace(budget=1.0)
    for index in range(60):
        pace.came(index / FPS)
        if index % 12 == 11:
            for _ in range(12):
                pace.made((index + 1) / FPS)
    report = pace.report()
    assert (report.frames, report.late) == (60, 0)
    assert report.first_frame == pytest.approx(12 / FPS)
    assert report.latency_p50 == pytest.approx(7 / FPS, rel=0.15)
    assert report.latency_p99 == pytest.approx(12 / FPS, rel=0.01)
    assert report.jitter_p99 == 0
    assert report.burst_p99 == pytest.approx(12 / FPS, rel=0.01)
    assert report.frames_per_second == pytest.approx(FPS)
    assert "0 of 60 frames late, due 1.00 s after" in report.describe()


def test_late_frames_are_counted_and_jitter_shows_them() -> None:
    pace = Pace(budget=0.5)
    for index in range(100):
        pace.came(index / FPS)
        pace.made(index / FPS + (0.7 if index in (40, 41, 42) else 0.3))
    report = pace.report()
    assert (report.frames, report.late) == (100, 3)
    assert report.jitter_p50 == 0 and report.jitter_p99 == pytest.approx(0.2, rel=0.01)


def test_a_maker_that_is_too_slow_gets_ever_later_and_says_so() -> None:
    pace = Pace(budget=1.0)
    for index in range(200):
        pace.came(index / FPS)
        pace.made(2 * index / FPS)
    pace.camera_waited = 3.0
    report = pace.report()
    assert report.late == 200 - 17 and report.latency_p99 > 12
    assert "the camera waited 3.0 s" in report.describe()


def test_frames_that_no_input_came_for_do_not_count() -> None:
    pace = Pace(budget=1.0)
    pace.made(5.0)
    pace.came(5.0)
    pace.made(5.5)
    pace.made(5.6)
    assert pace.report().frames == 1 and pace.report().first_frame == 0.5
