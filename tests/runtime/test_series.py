"""Numbers of series, against series whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest

from longtake.runtime import series

FPS = 16.0


def test_drift_is_the_distance_between_the_ends_that_were_seen() -> None:
    values = np.full((100, 3), 50.0)
    values[80:] += [3, 0, 4]
    values[90:] = np.nan
    assert series.drift(values, 5) == pytest.approx(5)
    assert series.drift(np.full((100, 3), np.nan), 5) is None


def test_slope_is_per_minute_and_survives_gaps() -> None:
    values = np.outer(np.arange(320), [3, 0, 4]) / (60 * FPS)
    values[40:200] = np.nan
    assert series.slope(values, FPS) == pytest.approx(5)
    assert series.slope(values[40:41], FPS) is None


def test_size_drift_of_a_pulse_looks_at_its_peaks() -> None:
    pulse = 10 + 2 * np.sin(np.arange(480) / 5)
    assert series.size_drift(pulse, FPS, growing=True) == pytest.approx(0, abs=0.02)
    larger = pulse * np.linspace(1, 1.5, 480)
    assert (series.size_drift(larger, FPS, growing=True) or 0) > 0.3


def test_motion_is_none_where_half_of_the_frames_do_not_count() -> None:
    center = np.stack([np.arange(16.0), np.full(16, 30.0)], axis=1)
    movement = series.move(center, np.full(16, 9.0))
    assert series.motion_word(movement, slice(0, 16)) == "moving left and right"
    center[3:12] = np.nan
    movement = series.move(center, np.where(np.isnan(center[:, 0]), np.nan, 9.0))
    assert series.motion_word(movement, slice(0, 16)) is None


def test_a_seam_ratio_needs_frames_on_both_sides() -> None:
    change = np.ones(20)
    change[0] = np.nan  # the first frame has none before it
    counts = np.ones(20, bool)
    assert series.seam_ratio(change, counts, [5, 10]) == pytest.approx(1)
    assert series.seam_ratio(change, counts, []) is None
    assert series.seam_ratio(change, counts, [0, 20, 99]) is None
    assert series.seam_ratio(change, counts, range(20)) is None
    assert series.seam_ratio(change, np.zeros(20, bool), [5]) is None


def test_the_largest_keeps_its_sign() -> None:
    assert series.largest([0.1, None, -0.4, float("nan")]) == -0.4
    assert series.largest([None]) is None
