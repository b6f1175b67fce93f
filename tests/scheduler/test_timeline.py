"""Totals by kind of action, from any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from longtake.scheduler.timeline import Timeline


def test_totals_add_up_over_threads() -> None:
    timeline = Timeline()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(400):
            pool.submit(timeline.note, "denoise", 0.25)
    timeline.note("decode", 0.5)
    assert timeline.summary() == {
        "decode": {"seconds": 0.5, "count": 1},
        "denoise": {"seconds": 100.0, "count": 400},
    }


def test_time_runs_from_the_origin() -> None:
    timeline = Timeline(origin=-1e6)
    assert timeline.elapsed > 1e6
