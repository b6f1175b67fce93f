"""How much Deep Forcing's cache holds, block by block, and what its schedule says of it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.scheduler.deep_retention import DeepRetention
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule, Verdict
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind, Span, Task

SPEC = ModelSpec(30, 12, 128, 8960, 16, 2, 1024, 3)
PAPER = DeepRetention()


@st.composite
def policies(draw: st.DrawFn) -> tuple[DeepRetention, int]:
    block, sink = draw(st.integers(1, 4)), draw(st.integers(0, 6))
    recent = draw(st.integers(block, block + 4))
    budget = sink + recent + draw(st.integers(0, 5))
    window = budget + draw(st.integers(0, 9))
    return DeepRetention(window, budget, sink, recent), block


@given(policies())
def test_the_cache_grows_and_falls_back_to_the_budget(case: tuple[DeepRetention, int]) -> None:
    policy, size = case
    held = 0
    for block in range(40):
        frames = Span(block * size, (block + 1) * size)
        full = held + size > policy.window
        assert policy.held(frames) == held
        assert policy.selects(frames) == full
        held = policy.budget if full else held + size
        assert policy.seen(frames) == held <= policy.capacity(None)
        spans = policy.context(frames)
        assert sum(map(len, spans)) == held - size
        if len(spans) == 2:  # the sink, and right before the block all the rest
            assert spans[0] == Span(0, policy.sink) and spans[1].stop == frames.start
        if full:  # there is enough to choose from
            candidates = policy.held(frames) - policy.sink - (policy.recent - size)
            assert candidates >= policy.chosen >= 0


def test_the_numbers_of_the_paper() -> None:
    """16 frames after a choice, of which 2 frames' worth of tokens were chosen; 21 at most."""
    assert PAPER.chosen == 2
    seen = [PAPER.seen(Span(start, start + 3)) for start in range(0, 36, 3)]
    assert seen == [3, 6, 9, 12, 15, 18, 21, 16, 19, 16, 19, 16]
    assert PAPER.context(Span(21, 24)) == (Span(0, 10), Span(18, 21))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: DeepRetention(sink=-1), "sink must be at least 0 latent frames, got -1"),
        (
            lambda: DeepRetention(21, 13, 10, 4),
            "a budget of 13 latent frames must hold the sink (10) and the recent frames (4), and "
            "fit the window (21); legal are 14 to 21",
        ),
        (lambda: DeepRetention(21, 22), "legal are 14 to 21"),
        (
            lambda: DeepRetention(recent=2).check(3, 90, 1024),
            "it must be at least 3 latent frames, got 2",
        ),
        (lambda: PAPER.check(3, 90, 20), "the model's rotary table has 20 rows"),
    ],
)
def test_what_can_not_run_is_refused(make: Callable[[], None], line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_10_a_video_may_be_longer_than_the_rotary_table() -> None:
    PAPER.check(3, None, 21)
    PAPER.check(3, 9, 9)


def schedule(steps: int) -> Schedule:
    seconds = SPEC.pixel_frames(36) / 16
    cues = (Cue(0, "first"), Cue(SPEC.pixel_frames(24) / 16, "second"))
    return Schedule(Causal(PAPER), Request(cues, seconds, 480, 832, 16), SPEC, steps)


@pytest.mark.parametrize("steps", [1, 4])
def test_first_steps_of_full_windows_select(steps: int) -> None:
    tasks = list(schedule(steps))
    chosen = [(task.block, task.step) for task in tasks if task.selects]
    assert chosen == [(7, 0), (9, 0), (11, 0)]
    assert not any(task.kind is Kind.RECACHE for task in tasks)
    assert [task.cue for task in tasks if task.kind is Kind.ENCODE] == [0, 1]


@pytest.mark.parametrize("steps", [1, 4])
def test_a_resumed_run_makes_the_same_choices(steps: int) -> None:
    """A finished block is restored, but where it decided what stays, its first step comes again."""
    tasks = list(schedule(steps).tasks(lambda block: Verdict(kept=block < 10)))
    assert [task.block for task in tasks if task.selects] == [7, 9, 11]
    for block in range(10):
        mine = [task for task in tasks if task.block == block and task.kind is not Kind.ENCODE]
        again = [Kind.DENOISE] if block in (7, 9) else []
        assert [task.kind for task in mine] == [*again, Kind.RESTORE, Kind.COMMIT, Kind.DECODE]
        assert [finishing(task) for task in mine].count(True) == 1
    assert sum(task.kind is Kind.DENOISE for task in tasks if task.block >= 10) == 2 * steps


def finishing(task: Task) -> bool:
    return task.kind in (Kind.RESTORE, Kind.DENOISE) and bool(task.finishes)
