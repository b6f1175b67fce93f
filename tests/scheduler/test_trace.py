"""A trace stays small, and its usage is of everything all the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.scheduler import trace as trace_module
from longtake.scheduler.timeline import Action, Activity
from longtake.scheduler.trace import Recording, Trace
from longtake.scheduler.usage import Usage, usage_of


def action(kind: str, start: float, stop: float, worker: int = 0) -> Action:
    return Action(worker, Activity(kind), kind, start, stop, 8 * (kind == "transfer"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Sum up after so few actions that a test sees it happen."""
    monkeypatch.setattr(trace_module, "_UNSETTLED", 8)
    return 8


def test_keeps_the_newest_and_counts_the_dropped() -> None:
    trace = Trace(0, "host", start=0.0, limit=3)
    for at in range(10):
        trace(action("compute", at, at + 1))
    recording = trace.recording(10.0)
    assert [a.start for a in recording.actions] == [7, 8, 9]
    assert (recording.dropped, recording.late) == (7, 0)
    assert recording.usage == Usage(compute=10)


def test_memory_does_not_grow_with_the_run() -> None:
    trace = Trace(0, "host", start=0.0, limit=100)
    most = 0
    for at in range(3 * trace_module._UNSETTLED):
        trace(action("compute", at, at + 0.5))
        most = max(most, len(trace._unsettled))
    recording = trace.recording(float(3 * trace_module._UNSETTLED))
    assert most <= trace_module._UNSETTLED
    assert len(recording.actions) == 100
    assert recording.usage == Usage(compute=recording.usage.wall / 2, idle=recording.usage.wall / 2)


@given(
    st.lists(
        st.tuples(st.sampled_from(Activity), st.integers(0, 5), st.integers(0, 3)), max_size=120
    )
)
@settings(max_examples=60)
def test_summing_up_on_the_way_changes_nothing(drawn: list[tuple[Activity, int, int]]) -> None:
    """Actions arrive as they end; none lasts longer than those that a trace still has open."""
    actions: list[Action] = []
    now = 100
    for kind, length, gap in drawn:
        now += gap + 1
        actions.append(action(kind, now - min(length, gap + 4), now))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_module, "_UNSETTLED", 16)
        trace = Trace(0, "host", start=100.0)
        for each in actions:
            trace(each)
    recording = trace.recording(now + 5.0)
    whole = usage_of(actions, 100, now + 5)
    assert recording.late == sum(a.start < 100 for a in actions)
    assert recording.usage == whole


def test_an_action_that_outlasts_thousands_is_reported(small: int) -> None:
    trace = Trace(0, "host", start=0.0)
    for at in range(small):
        trace(action("transfer", at, at + 1))
    trace(action("compute", 0, 20))
    trace(action("compute", 1, 2))
    recording = trace.recording(20.0)
    assert recording.late == 2
    assert recording.usage.wall == 20
    assert 0 < recording.usage.compute < 20


def test_actions_that_end_together_are_summed_up(small: int) -> None:
    trace = Trace(0, "host", start=0.0)
    for at in range(4 * small):
        trace(action("wait", at % 5, 5))
    assert trace.recording(5.0).usage == Usage(exposed=5)


def test_what_does_not_count_is_never_late(small: int) -> None:
    """A receive that was posted long ago, or another lane, may last as long as it likes."""
    trace = Trace(0, "host", start=0.0)
    for at in range(2 * small):
        trace(action("compute", at, at + 1))
    trace(Action(0, Activity.TRANSFER, "receive", 0.0, 16.0, bytes=0))
    trace(Action(0, Activity.COMPUTE, "decode", 0.0, 16.0, lane="decode"))
    recording = trace.recording(16.0)
    assert (recording.late, len(recording.actions)) == (0, 2 * small + 2)
    assert recording.usage == Usage(compute=16)


def test_threads_lose_nothing() -> None:
    trace = Trace(0, "host", start=0.0, limit=500)

    def work(thread: int) -> None:
        for at in range(300):
            trace(action("compute", at, at + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    recording = trace.recording(300.0)
    assert len(recording.actions) + recording.dropped == 1200
    assert recording.usage == Usage(compute=300)


def test_a_recording_travels_and_changes_clock() -> None:
    trace = Trace(2, "host", start=10.0)
    trace(Action(2, Activity.TRANSFER, 'keys "to" 1', 11.1, 12.0, bytes=8))
    trace(Action(2, Activity.COMPUTE, "decode of block 0", 12.0, 13.5, lane="decode"))
    recording = trace.recording(14.0)
    sent = Recording.from_json(recording.to_json())
    assert sent == recording
    assert sent.actions[0].activity is Activity.TRANSFER
    moved = sent.on_clock(lambda local: local - 10)
    assert moved.start == 0.0
    assert moved.actions == (
        Action(2, Activity.TRANSFER, 'keys "to" 1', 11.1 - 10, 2.0, bytes=8),
        Action(2, Activity.COMPUTE, "decode of block 0", 2.0, 3.5, lane="decode"),
    )
    assert moved.usage == sent.usage == usage_of(recording.actions, 10.0, 14.0)


def test_what_is_not_this_workers_is_refused() -> None:
    trace = Trace(0, "host", start=0.0)
    with pytest.raises(ValueError, match="worker 0 cannot record"):
        trace(action("wait", 0, 1, worker=1))
    with pytest.raises(ValueError, match="worker 0 cannot record"):
        trace(action("wait", 2, 1))
    with pytest.raises(ValueError, match="at least 1 action, got a limit of 0"):
        Trace(0, "host", start=0.0, limit=0)
    assert trace.recording(1.0).actions == ()


def test_the_time_that_is_summed_up_cannot_be_taken_back(small: int) -> None:
    trace = Trace(0, "host", start=0.0)
    for at in range(2 * small):
        trace(action("wait", at, at + 1))
    with pytest.raises(ValueError, match="ends before it starts"):
        trace.recording(1.0)
