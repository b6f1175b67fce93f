"""Block Cascading: with one block in flight it is causal; on workers it is as in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.distributed.walks import (
    TOLERANCE,
    Walk,
    alone_made,
    check_on_workers,
    check_resume,
    distance,
)

from longtake.scheduler.degrees import Degrees
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Verdict
from longtake.scheduler.strategies.cascade import Cascade
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind

ALL_KEPT = Retention(recache=False)
WINDOW = Retention(6, 2, Positions.RELATIVE, recache=False)
CUES = (0, 4)


def test_22_one_block_in_flight_is_causal_to_the_bit() -> None:
    one = Walk(Cascade(ALL_KEPT, in_flight=1), cues=CUES)
    assert torch.equal(alone_made(one), alone_made(Walk(Causal(ALL_KEPT), cues=CUES)))


def test_one_block_in_flight_is_causal_to_rounding_where_the_window_slides() -> None:
    """The cache of causal generation reads a full window in another order."""
    one = alone_made(Walk(Cascade(WINDOW, in_flight=1), cues=CUES))
    assert distance(one, alone_made(Walk(Causal(WINDOW), cues=CUES))) < TOLERANCE


@pytest.mark.parametrize("sees", ["past", "both"])
@pytest.mark.parametrize(
    "degrees",
    [
        Degrees(clip=2),
        Degrees(clip=3),
        Degrees(ring=2),
        Degrees(ulysses=3),
        Degrees(stages=2),
        Degrees(clip=2, ring=2),
        Degrees(clip=2, stages=2),
        Degrees(cfg=2, clip=2),
    ],
    ids=Degrees.describe,
)
def test_22_workers_make_what_one_process_makes(workers: Any, degrees: Degrees, sees: str) -> None:
    guidance = 3.0 if degrees.cfg > 1 or degrees.stages > 1 else 1.0
    cascade = Cascade(WINDOW, in_flight=3, sees=sees)  # type: ignore[arg-type]
    check_on_workers(workers, Walk(cascade, cues=CUES, guidance=guidance), degrees)


@pytest.mark.parametrize("breaks_after", [1, 2, 5, 6])
def test_killed_run_goes_on_to_the_same_bits(breaks_after: int) -> None:
    walk = Walk(Cascade(WINDOW, in_flight=3, sees="both"), cues=CUES, sampler="unipc")
    check_resume(walk, breaks_after)


def test_block_that_is_damaged_meanwhile_is_made_again() -> None:
    """With all others, since blocks in flight see each other."""
    walk = Walk(Cascade(WINDOW, in_flight=3, sees="both"), cues=CUES)
    check_resume(walk, breaks_after=5, damaged=1)


def test_what_was_finished_by_a_tick_is_told_under_prompts_changed_by_hand() -> None:
    """Their encodes are tasks, with ticks of their own."""
    schedule = Walk(Cascade(WINDOW, in_flight=3)).schedule()
    schedule.switch("another", block=1)
    finished: set[int] = set()
    for task in schedule:
        finished.update(task.finishes)
        assert schedule.finished(task.tick) == finished
    assert finished == set(range(5))


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_29_blocks_that_have_begun_are_finished_when_it_is_stopped(stop: int) -> None:
    schedule = Walk(Cascade(WINDOW, in_flight=3)).schedule()
    tasks = list(schedule.tasks(lambda block: Verdict(go=block < stop)))
    assert [task.block for task in tasks if task.kind is Kind.DECODE] == list(range(stop))
    assert all(task.kind is not Kind.DENOISE for task in tasks[-1:])


@pytest.mark.parametrize(("in_flight", "lead"), [(1, 1), (2, 1), (2, 2), (3, 1), (9, 1), (9, 2)])
def test_17_every_block_takes_its_steps_once_and_is_committed_last(
    in_flight: int, lead: int
) -> None:
    walk = Walk(Cascade(WINDOW, in_flight, lead), cues=CUES)
    taken: dict[int, list[int | None]] = {}
    decoded = []
    for task in walk.schedule():
        assert len(task.parts) <= in_flight
        for part in task.parts:
            taken.setdefault(part.block, []).append(part.step)
            assert part.last == (part.step == 2) and (part.writes is None) == (
                part.step is not None
            )
        if len(task.parts) > 1:
            before, after = ([p.step for p in task.parts][i] for i in (0, 1))
            assert before is None or (after is not None and before - after >= lead)
        if task.kind is Kind.DECODE:
            decoded.append(task.block)
            assert taken[task.block] == [0, 1, 2]
    assert decoded == [0, 1, 2, 3, 4] and set(map(tuple, taken.values())) == {(0, 1, 2, None)}
