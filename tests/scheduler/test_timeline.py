"""Totals by kind of action, from any thread."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError

import pytest

from longtake.scheduler.timeline import Action, Activity, Timeline, forget


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


def test_an_action_is_a_value_and_travels() -> None:
    action = Action(1, Activity.TRANSFER, "keys", 2.0, 3.0, bytes=8)
    forget(action)
    sent = pickle.loads(pickle.dumps(action))
    assert sent == action
    assert sent.activity is Activity.TRANSFER
    with pytest.raises(FrozenInstanceError):
        sent.stop = 4.0
