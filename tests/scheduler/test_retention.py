"""What stays cached, and where it is seen."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from longtake.scheduler.errors import UserError
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.task import Span

ROWS = 1024
LONGLIVE = Retention(window=12, sink=3)
positions = st.sampled_from(Positions)


def frames_of(spans: tuple[Span, ...]) -> list[int]:
    return [frame for span in spans for frame in span.frames()]


@given(
    start=st.integers(0, 200),
    block=st.integers(1, 8),
    window=st.none() | st.integers(1, 40),
    sink=st.integers(0, 6),
    first=st.integers(0, 50),
)
def test_05_a_block_sees_the_sink_and_the_most_recent_frames(
    start: int, block: int, window: int | None, sink: int, first: int
) -> None:
    assume(first <= start and (window is None or window >= sink + block))
    seen = frames_of(Retention(window, sink).context(Span(start, start + block), first))
    past = list(range(first, start))
    room = len(past) if window is None else window - block
    expected = past if len(past) <= room else past[:sink] + past[len(past) - (room - sink) :]
    assert seen == expected


@pytest.mark.parametrize(
    ("retention", "block", "expected"),
    [
        (Retention(21), Span(18, 21), [*range(18)]),
        (Retention(21), Span(21, 22), [*range(1, 21)]),
        (Retention(21), Span(21, 24), [*range(3, 21)]),
        (LONGLIVE, Span(9, 12), [*range(9)]),
        (LONGLIVE, Span(12, 13), [0, 1, 2, *range(4, 12)]),
        (LONGLIVE, Span(12, 15), [0, 1, 2, *range(6, 12)]),
        (LONGLIVE, Span(39, 40), [0, 1, 2, *range(31, 39)]),
        (Retention(10, 3), Span(9, 12), [0, 1, 2, *range(5, 9)]),  # larger than the space left
        (Retention(6, 3), Span(30, 33), [0, 1, 2]),
        (Retention(3), Span(30, 33), []),
    ],
)
def test_05_contexts_at_the_edges(retention: Retention, block: Span, expected: list[int]) -> None:
    assert frames_of(retention.context(block)) == expected


def test_15_a_full_window_keeps_the_old_sink_and_rewrites_the_rest() -> None:
    assert LONGLIVE.recached(15) == ((Span(0, 3),), Span(6, 15), 0)


@pytest.mark.parametrize("done", [3, 9, 12])
def test_15_a_window_that_is_not_over_full_is_rewritten_with_its_sink(done: int) -> None:
    assert LONGLIVE.recached(done) == ((), Span(0, done), 0)


def test_15_without_a_kept_sink_the_sink_moves_to_the_start_of_the_window() -> None:
    moving = Retention(window=12, sink=3, keep_sink=False)
    assert moving.recached(12) == ((), Span(0, 12), 0)
    assert moving.recached(15) == ((), Span(3, 15), 3)
    assert frames_of(moving.context(Span(15, 18), first=3)) == [3, 4, 5, *range(9, 15)]
    assert moving.recached(18, first=3) == ((), Span(6, 18), 6)


def test_without_a_window_everything_is_rewritten() -> None:
    assert Retention().recached(40) == ((), Span(0, 40), 0)


@given(
    block=st.integers(0, 60),
    size=st.integers(1, 4),
    room=st.integers(0, 12),
    sink=st.integers(0, 4),
)
def test_positions_count_as_their_rule_says(block: int, size: int, room: int, sink: int) -> None:
    frames = Span(block * size, (block + 1) * size)
    window = sink + size + room
    spans = Retention(window, sink).context(frames)
    seen = [*frames_of(spans), *frames.frames()]
    placed = {rule: Retention(window, sink, rule).place(spans, frames) for rule in Positions}
    assert placed[Positions.ABSOLUTE] == {frame: frame for frame in seen}
    assert placed[Positions.RELATIVE] == {frame: index for index, frame in enumerate(seen)}
    rebased = [placed[Positions.SINK_REBASED][frame] for frame in seen]
    assert rebased == list(range(frames.stop - len(seen), frames.stop))


@pytest.mark.parametrize("sink", [-1, -7])
def test_a_negative_sink_is_refused(sink: int) -> None:
    with pytest.raises(UserError, match=rf"^sink must be at least 0 latent frames, got {sink}$"):
        Retention(window=12, sink=sink)


@pytest.mark.parametrize(("window", "sink"), [(3, 3), (0, 0), (-1, 0)])
def test_a_window_must_be_larger_than_its_sink(window: int, sink: int) -> None:
    with pytest.raises(UserError, match=rf"^the window \({window} latent .* than it \({sink}\)$"):
        Retention(window, sink)


def test_a_window_must_hold_sink_and_block() -> None:
    Retention(6, 3).check(block_frames=3, total_frames=30, rotary_rows=ROWS)
    with pytest.raises(UserError, match=r"^a window of 5 .* 3 sink .* block of 3; the least is 6$"):
        Retention(5, 3).check(block_frames=3, total_frames=30, rotary_rows=ROWS)


def test_an_endless_stream_needs_a_window() -> None:
    for rule in Positions:
        with pytest.raises(UserError, match=r"^an endless stream needs a window; set strategy.win"):
            Retention(positions=rule).check(3, None, ROWS)


@pytest.mark.parametrize("total", [1024, 1025, None])
def test_10_absolute_positions_end_with_the_rotary_table(total: int | None) -> None:
    retention = Retention(12, 3, Positions.ABSOLUTE)
    if total == 1024:
        retention.check(3, total, ROWS)
        return
    name = "an endless stream" if total is None else "1025 latent frames"
    message = f"{name} can't be placed at absolute positions: the model's rotary table has 1024"
    with pytest.raises(UserError, match=f"^{re.escape(message)} rows; set .* relative or sink_re"):
        retention.check(3, total, ROWS)


@pytest.mark.parametrize("rule", [Positions.RELATIVE, Positions.SINK_REBASED])
@pytest.mark.parametrize("total", [1025, 100_000, None])
def test_positions_in_the_window_reach_any_length(rule: Positions, total: int | None) -> None:
    Retention(12, 3, rule).check(3, total, ROWS)


@pytest.mark.parametrize("rule", Positions)
def test_a_window_beyond_the_table_is_refused_unless_the_video_is_short(rule: Positions) -> None:
    Retention(2000, 0, rule).check(3, 300, ROWS)
    Retention(None, 0, rule).check(3, 1024, ROWS)
    for window, total in [(2000, 1500), (None, 1025)]:
        with pytest.raises(UserError, match="rotary table has 1024 rows"):
            Retention(window, 0, rule).check(3, total, ROWS)


@given(st.none() | st.integers(7, 40), st.integers(1, 100))
def test_the_cache_holds_no_more_than_there_is(window: int | None, total: int) -> None:
    retention = Retention(window, 3)
    assert retention.capacity(total) == (total if window is None else min(window, total))
    assert retention.capacity(None if window else total) == (window or total)
