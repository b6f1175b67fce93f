"""The forecast against a simulated pipeline whose end is known."""

from __future__ import annotations

from itertools import pairwise

import pytest

from longtake.runtime.progress import Forecast, Progress

PARCEL = {"denoise": 1.0, "decode": 3.0, "write": 12.0}
BLOCKS, EVALUATIONS = 10, 5  # of each block


def simulate(pace: dict[str, float]) -> list[tuple[float, float]]:
    """(true, told) seconds left at every moment when a lane has done something.

    An evaluation, a block's decode and a block's write are done at once; lanes work side by side.
    """
    moments: list[tuple[float, str, float]] = []
    evaluated = decoded = written = 0.0
    for _ in range(BLOCKS):
        for _ in range(EVALUATIONS):
            evaluated += pace["denoise"]
            moments.append((evaluated, "denoise", 1))
        decoded = max(decoded, evaluated) + 3 * pace["decode"]
        moments.append((decoded, "decode", 3))
        written = max(written, decoded) + 12 * pace["write"]
        moments.append((written, "write", 12))
    work = {"denoise": 1.0 * BLOCKS * EVALUATIONS, "decode": 3.0 * BLOCKS, "write": 12.0 * BLOCKS}
    forecast = Forecast(work, PARCEL)
    for lane in work:
        forecast.note(lane, 1e-9, 1e-9 * pace[lane])  # as if each had been tried before
    told = []
    for at, lane, units in sorted(moments):
        forecast.note(lane, units, units * pace[lane])
        left = forecast.seconds_left()
        assert left is not None
        told.append((written - at, left))
    return told


@pytest.mark.parametrize(
    "pace",
    [
        {"denoise": 1.0, "decode": 0.1, "write": 0.01},
        {"denoise": 1.0, "decode": 1.5, "write": 0.01},
        {"denoise": 0.1, "decode": 1.0, "write": 0.5},
        {"denoise": 0.1, "decode": 0.1, "write": 2.0},
    ],
    ids=["denoise bound", "decode nearly bound", "decode bound", "write bound"],
)
def test_it_is_off_by_at_most_what_is_at_work(pace: dict[str, float]) -> None:
    at_work = pace["denoise"] + 3 * pace["decode"] + 12 * pace["write"]
    told = simulate(pace)
    assert max(abs(true - left) for true, left in told) <= at_work
    assert told[-1][1] == pytest.approx(0, abs=1e-6)


def test_nothing_is_told_before_every_lane_has_shown_its_pace() -> None:
    forecast = Forecast({"denoise": 5, "decode": 3}, {"denoise": 1, "decode": 3})
    assert forecast.seconds_left() is None
    forecast.note("denoise", 1, 2.0)
    assert forecast.seconds_left() is None
    forecast.note("decode", 1, 0.5)
    assert forecast.seconds_left() == 4 * 2.0 + 2 * 0.5


def test_a_joint_video_is_decoded_after_all_of_it_is_denoised() -> None:
    forecast = Forecast({"denoise": 4, "decode": 21}, {"denoise": 1, "decode": 21})
    forecast.note("denoise", 2, 20.0)
    forecast.note("decode", 1e-6, 1e-6)
    assert forecast.seconds_left() == pytest.approx(2 * 10 + 21)


def test_more_work_done_never_raises_a_steady_forecast() -> None:
    told = [left for _, left in simulate({"denoise": 1.0, "decode": 0.1, "write": 0.01})]
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(told))


def test_progress_is_rounded_for_reading() -> None:
    progress = Progress("write", 2, None, 24, None, 1 / 3, 72.00049, None)
    assert progress.to_dict() == {
        "stage": "write",
        "block": 2,
        "blocks": None,
        "frames": 24,
        "total_frames": None,
        "frames_per_second": 0.333,
        "elapsed": 72.0,
        "seconds_left": None,
    }
