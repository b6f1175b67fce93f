"""Who shares a launch: as many as are in time, and nobody is harmed."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.scheduler.admission import Beat, LaunchTimes, Waiting, next_launch, sustained


def batched(streams: int) -> float:
    """A launch that costs more to begin than each stream adds."""
    return 0.4 + 0.1 * streams


def one_by_one(streams: int) -> float:
    return 0.5 * streams


def test_all_that_are_ready_go_together() -> None:
    waiting = [Waiting(i, ready=1.0, due=9.0) for i in range(3)]
    assert next_launch(waiting, 2.0, batched) == (2.0, (0, 1, 2))


def test_a_launch_waits_for_a_stream_that_comes_soon_and_not_for_one_that_comes_late() -> None:
    early = Waiting(0, ready=1.0, due=2.0)
    assert next_launch([early, Waiting(1, 1.4, 2.4)], 1.0, batched) == (1.4, (0, 1))
    assert next_launch([early, Waiting(1, 1.5, 2.5)], 1.0, batched) == (1.0, (0,))


def test_the_batch_grows_only_while_all_are_in_time() -> None:
    """Three at once would take 1.5 s."""
    waiting = [Waiting(i, 0.0, due) for i, due in enumerate((3.0, 1.2, 1.1))]
    assert next_launch(waiting, 0.0, one_by_one) == (0.0, (2, 1))


def test_a_stream_without_haste_does_not_delay_one_that_is_about_to_be_ready() -> None:
    """It would be on when the other one comes, and the other one would be late then."""
    idle, live = Waiting(0, 0.0, math.inf), Waiting(1, 0.3, 0.9)
    assert next_launch([idle, live], 0.0, one_by_one) == (0.3, (1,))
    assert next_launch([idle, Waiting(1, 0.3, 1.1)], 0.0, one_by_one) == (0.0, (0,))


def test_who_is_late_anyway_holds_nobody_back() -> None:
    late, good = Waiting(0, 0.0, 0.2), Waiting(1, 0.0, 0.6)
    assert next_launch([late, good], 0.0, one_by_one) == (0.0, (1,))
    assert next_launch([late, Waiting(1, 0.0, 0.7)], 0.0, batched) == (0.0, (1, 0))
    assert next_launch([late, Waiting(1, 0.0, 0.3)], 0.0, batched) == (0.0, (0, 1))


def test_streams_that_are_not_ready_are_waited_for() -> None:
    assert next_launch([Waiting(0, 5.0, 9.0)], 1.0, batched) == (5.0, (0,))
    nobody = Waiting(1, math.inf, math.inf)
    assert next_launch([Waiting(0, 5.0, 9.0), nobody], 1.0, batched) == (5.0, (0,))


times = st.floats(0, 5, allow_nan=False)


@given(
    st.lists(st.tuples(times, times), min_size=1, max_size=5),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
)
def test_who_could_be_in_time_alone_is_not_made_late_by_company(
    drawn: list[tuple[float, float]], begin: float, each: float
) -> None:
    """Whoever shares a launch and could have been in time, is."""
    waiting = [Waiting(i, ready, ready + slack) for i, (ready, slack) in enumerate(drawn)]

    def seconds(streams: int) -> float:
        return begin + each * streams

    start, group = next_launch(waiting, 0.0, seconds)
    assert group and all(waiting[i].ready <= start for i in group)
    punctual = [w for w in waiting if max(0.0, w.ready) + seconds(1) <= w.due]
    if any(w.stream in group for w in punctual):
        ends = start + seconds(len(group))
        assert all(ends <= w.due for w in punctual if w.stream in group)


def test_what_a_launch_takes_is_the_longest_of_late() -> None:
    times = LaunchTimes()
    assert times.seconds(3) == 0
    times.note(2, 0.4)
    assert times.seconds(1) == 0.4  # no more than two
    assert times.seconds(4) == 0.8  # no more than twice
    times.note(1, 0.3)
    times.note(1, 0.1)
    assert [times.seconds(n) for n in (1, 2, 4)] == [0.3, 0.4, 0.8]
    for _ in range(LaunchTimes.LATEST):
        times.note(1, 0.2)
    assert times.seconds(1) == 0.2
    expected = [times.seconds(n) for n in range(1, 6)]
    assert all(a <= b for a, b in pairwise(expected))


@pytest.mark.parametrize(
    ("streams", "slack", "kept"), [(1, 1.0, True), (3, 1.0, True), (6, 1.0, True), (7, 1.0, False)]
)
def test_as_many_streams_as_a_period_holds_are_sustained(
    streams: int, slack: float, kept: bool
) -> None:
    beats = [Beat(0.0, 1.0, slack) for _ in range(streams)]
    assert sustained(beats, batched) is kept


def test_phases_count_where_there_is_little_slack() -> None:
    """Alone each takes 0.5 s of every second; together 0.6 s, but they come 0.5 s apart."""
    apart = [Beat(0.0, 1.0, 0.75), Beat(0.5, 1.0, 0.75)]
    assert sustained(apart, batched)  # one after the other
    assert not sustained([*apart, Beat(0.25, 1.0, 0.75)], lambda n: 0.5 + 0.2 * n)
    assert sustained([Beat(0.0, 1.0, 0.75)] * 3, lambda n: 0.5 + 0.05 * n)
