"""Compute, exposed and idle time add up to the wall, whatever overlaps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.scheduler.timeline import MAIN, Action, Activity
from longtake.scheduler.usage import COLUMNS, Usage, usage_by_worker, usage_of, usage_rows

WINDOW = 40  # whole seconds, so that a model can count them one by one


def action(
    kind: str, start: float, stop: float, worker: int = 0, size: int = 8, lane: str = MAIN
) -> Action:
    size = size if kind == "transfer" else 0
    return Action(worker, Activity(kind), kind, start, stop, size, lane)


lanes = st.sampled_from([MAIN, MAIN, "decode"])


@st.composite
def any_actions(draw: st.DrawFn) -> list[Action]:
    second = st.integers(-5, WINDOW + 5)
    each = (st.sampled_from(Activity), second, second, st.sampled_from([0, 8]), lanes)
    drawn = draw(st.lists(st.tuples(*each), max_size=25))
    return [action(kind, min(a, b), max(a, b), 0, size, lane) for kind, a, b, size, lane in drawn]


def counted(actions: list[Action], start: int, stop: int) -> Usage:
    """The definitions, second by second."""
    compute = exposed = hidden = idle = 0
    for second in range(start, stop):
        running = {
            a.activity
            for a in actions
            if a.start <= second < a.stop
            and a.lane == MAIN
            and (a.activity is not Activity.TRANSFER or a.bytes > 0)
        }
        waits = Activity.WAIT in running
        computes = Activity.COMPUTE in running and not waits
        exposed += waits
        compute += computes
        idle += not waits and not computes
        hidden += Activity.TRANSFER in running and not waits
    return Usage(compute, exposed, hidden, idle)


@given(any_actions())
def test_equals_a_count_second_by_second(actions: list[Action]) -> None:
    assert usage_of(actions, 0, WINDOW) == counted(actions, 0, WINDOW)


@given(any_actions(), st.floats(1e-6, 1e3), st.floats(-1e6, 1e6))
def test_adds_up_and_is_never_negative(actions: list[Action], second: float, origin: float) -> None:
    moved = [
        replace(a, start=origin + a.start * second, stop=origin + a.stop * second) for a in actions
    ]
    start, stop = origin, origin + WINDOW * second
    usage = usage_of(moved, start, stop)
    parts = (usage.compute, usage.exposed, usage.hidden, usage.idle)
    assert min(parts) >= 0
    assert usage.compute + usage.exposed + usage.idle == pytest.approx(stop - start, rel=1e-9)
    assert usage.wall == pytest.approx(stop - start, rel=1e-9)
    assert usage.exposed + usage.hidden <= usage.wall * (1 + 1e-9)


@given(any_actions(), st.integers(0, WINDOW))
def test_adjoining_windows_add_up(actions: list[Action], middle: int) -> None:
    halves = usage_of(actions, 0, middle) + usage_of(actions, middle, WINDOW)
    assert halves == usage_of(actions, 0, WINDOW)


@given(any_actions(), st.randoms())
def test_neither_order_nor_repetition_matters(actions: list[Action], random: object) -> None:
    twice = actions * 2
    random.shuffle(twice)  # type: ignore[attr-defined]
    assert usage_of(twice, 0, WINDOW) == usage_of(actions, 0, WINDOW)


def test_a_transfer_behind_compute_is_hidden() -> None:
    usage = usage_of([action("compute", 0, 10), action("transfer", 2, 7)], 0, 10)
    assert usage == Usage(compute=10, hidden=5)
    assert usage.hidden_share == 1


def test_a_wait_inside_a_task_is_no_compute() -> None:
    actions = [action("compute", 0, 10), action("transfer", 2, 9), action("wait", 6, 9)]
    usage = usage_of(actions, 0, 12)
    assert usage == Usage(compute=7, exposed=3, hidden=4, idle=2)
    assert usage.hidden_share == pytest.approx(4 / 7)


def test_what_decodes_beside_a_waiting_worker_hides_nothing() -> None:
    actions = [action("wait", 2, 6), action("compute", 0, 9, lane="decode")]
    assert usage_of(actions, 0, 10) == Usage(exposed=4, idle=6)


def test_a_receive_that_was_posted_early_hides_nothing() -> None:
    """The bytes were on their way for two seconds at most, as the sender tells."""
    receiver = [action("compute", 0, 9), action("transfer", 0, 10, size=0), action("wait", 9, 10)]
    sender = [action("compute", 0, 10, 1), action("transfer", 8, 10, 1)]
    assert usage_of(receiver, 0, 10) == Usage(compute=9, exposed=1)
    assert usage_of(sender, 0, 10) == Usage(compute=10, hidden=2)


def test_transfers_at_the_same_time_count_once() -> None:
    actions = [action("transfer", 0, 4), action("transfer", 2, 6), action("transfer", 3, 4)]
    assert usage_of(actions, 0, 10) == Usage(hidden=6, idle=10)


def test_a_worker_without_actions_is_idle() -> None:
    usage = usage_of([], 5, 8)
    assert usage == Usage(idle=3)
    assert usage.hidden_share is None


def test_an_empty_window_has_no_shares() -> None:
    usage = usage_of([action("wait", 0, 4)], 2, 2)
    assert (usage, usage.share(0.0)) == (Usage(), 0.0)


def test_the_workers_share_one_window() -> None:
    actions = [action("compute", 3, 9, worker=1), action("compute", 2, 4, worker=0)]
    usages = usage_by_worker(actions)
    assert list(usages) == [0, 1]
    assert usages == {0: Usage(compute=2, idle=5), 1: Usage(compute=6, idle=1)}
    assert usage_by_worker([]) == {}


@pytest.mark.parametrize("stop", [1.0, float("nan")])
def test_what_ends_before_it_starts_is_refused(stop: float) -> None:
    with pytest.raises(ValueError, match=r"action ends before it starts: .*name='wait'"):
        usage_of([action("compute", 0, 1), action("wait", 2, stop)], 0, 5)
    with pytest.raises(ValueError, match=r"window of 2 \.\. "):
        usage_of([], 2, stop)


def test_the_rows_read_well() -> None:
    usages = {
        1: Usage(compute=3, idle=1),
        0: Usage(compute=7, exposed=1, hidden=3, idle=2),
    }
    rows = usage_rows(usages)
    assert rows == [
        ("0", "10.00 s", "7.00 s (70%)", "1.00 s (10%)", "3.00 s (30%)", "2.00 s (20%)", "75%"),
        ("1", "4.00 s", "3.00 s (75%)", "0.00 s (0%)", "0.00 s (0%)", "1.00 s (25%)", "-"),
        ("all", "14.00 s", "10.00 s (71%)", "1.00 s (7%)", "3.00 s (21%)", "3.00 s (21%)", "75%"),
    ]
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert [row[0] for row in usage_rows({3: Usage(idle=1)})] == ["3"]
