"""MAGI-1's chunks: what each sees stage by stage; on workers it is as in one process."""

from __future__ import annotations

from dataclasses import replace
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
from longtake.scheduler.errors import UserError
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.strategies.chunks import Chunks
from longtake.scheduler.task import NO_PROMPT, Kind, Part, Task

CUES = (0, 4)
RANGES = (4, 3, 2)
MANY = [
    Chunks(),
    Chunks((3, 2)),
    Chunks((None, None)),
    Chunks((2, 2, 2, 5)),
    Chunks((6, 5, 4, 3), sink=1, positions=Positions.RELATIVE),
    Chunks((1,), clean_range=3),
    Chunks((2, 2), clean_range=None, clean_text="prompt"),
]


def launches(walk: Walk) -> list[Task]:
    return [task for task in walk.schedule() if task.parts]


def seen(part: Part, block_frames: int = 2) -> list[int]:
    """The chunks that a part sees besides itself, in order."""
    frames = sorted(frame for seen in part.sees for frame in seen.frames.frames())
    chunks = sorted({frame // block_frames for frame in frames})
    assert frames == [c * block_frames + i for c in chunks for i in range(block_frames)]
    return chunks


@pytest.mark.parametrize(("steps", "every"), [(4, 1), (8, 2)])
def test_18_a_chunk_sees_the_interval_of_its_stage(steps: int, every: int) -> None:
    """MAGI-1's `noise2clean_kvrange`: all in flight before it, and one that is finished."""
    for task in launches(Walk(Chunks(), frames=20, steps=steps)):
        noisy = [part for part in task.parts if part.step is not None]
        for place, part in enumerate(noisy):
            assert part.step is not None
            stage = part.step // every
            reach = (5, 4, 3, 2)[stage]
            first = max(0, part.block + 1 - reach)
            assert seen(part) == list(range(first, part.block))
            finished = [chunk for chunk in seen(part) if chunk < noisy[0].block]
            assert place == part.block - noisy[0].block
            assert len(finished) == (1 if noisy[0].block else 0)


@pytest.mark.parametrize("chunks", [1, 3, 4, 9])
@pytest.mark.parametrize(("steps", "every"), [(4, 1), (8, 2), (64, 16)])
def test_18_forwards_are_as_many_as_the_formula_says(chunks: int, steps: int, every: int) -> None:
    assert len(launches(Walk(Chunks(), frames=2 * chunks, steps=steps))) == every * (chunks + 3)


@pytest.mark.parametrize("chunks", MANY)
def test_17_every_chunk_takes_its_steps_once_and_is_kept_beside_the_next_launch(
    chunks: Chunks,
) -> None:
    steps = 2 * chunks.stages
    walk = Walk(chunks, frames=18, cues=CUES, steps=steps)
    taken: dict[int, list[int | None]] = {}
    decoded: list[int] = []
    for task in walk.schedule():
        for part in task.parts:
            taken.setdefault(part.block, []).append(part.step)
            assert part.last == (part.step == steps - 1)
            assert (part.writes is None) == (part.step is not None)
            assert part.step is not None or task.parts.index(part) == 0
        if task.kind is Kind.DECODE:
            decoded.append(task.block)
            assert taken[task.block] == list(range(steps))
    assert decoded == list(range(9))
    assert [taken[chunk] for chunk in range(8)] == 8 * [[*range(steps), None]]
    assert taken[8] == list(range(steps)), "nothing follows that could see the last chunk clean"


@pytest.mark.parametrize("chunks", MANY)
def test_18_only_clean_keys_are_kept_and_no_more_than_there_is_room_for(chunks: Chunks) -> None:
    for frames in (2, 4, 12, 30):
        walk = Walk(chunks, frames=frames, steps=chunks.stages)
        schedule = walk.schedule()
        room = chunks.cached_frames(schedule.request, schedule.spec)
        kept: set[int] = set()
        most = 0
        for task in schedule:
            for _, span in task.evicts:
                kept -= set(span.frames())
            live = {frame for part in task.parts for frame in part.frames.frames()}
            for part in task.parts:
                for look in part.sees:
                    there = live if look.row is None else kept - live
                    assert set(look.frames.frames()) <= there
            for part in task.parts:
                if part.writes is not None:
                    assert part.step is None
                    kept |= set(part.frames.frames())
            most = max(most, len(kept))
        assert most <= room
        if frames == 30 and None not in (*chunks.ranges, chunks.clean_range):
            assert most == room, "more memory is asked for than is ever needed"


def test_18_a_clean_evaluation_sees_only_its_chunk_and_no_text() -> None:
    clean = [part for task in launches(Walk(Chunks(), steps=4)) for part in task.parts[:1]]
    clean = [part for part in clean if part.step is None]
    assert [part.block for part in clean] == [0, 1, 2, 3]
    assert all(part.sees == () and part.cue == NO_PROMPT for part in clean)
    assert Chunks().cached_frames(*request_and_spec()) == 2, "one finished chunk"


def test_18_clean_text_changes_what_later_chunks_see() -> None:
    """One chunk in flight, so the past is seen through clean evaluations alone."""
    without = Walk(Chunks((2,)), frames=4)
    under = replace(without, strategy=Chunks((2,), clean_text="prompt"))
    assert torch.equal(alone_made(without)[:, :, :2], alone_made(under)[:, :, :2])
    assert distance(alone_made(without), alone_made(under)) > TOLERANCE


@pytest.mark.parametrize("sampler", ["few", "unipc"])
def test_one_chunk_in_flight_that_sees_all_is_causal(sampler: str) -> None:
    """What differs otherwise is the clean evaluation: MAGI-1's sees neither past nor prompt."""
    causal = Walk(Causal(Retention(recache=False)), cues=CUES, sampler=sampler)
    whole = Chunks((None,), clean_range=None, clean_text="prompt")
    assert distance(alone_made(replace(causal, strategy=whole)), alone_made(causal)) < TOLERANCE
    for other in (replace(whole, clean_range=1), replace(whole, clean_text="empty")):
        made = alone_made(replace(causal, strategy=other))
        assert torch.equal(made[:, :, :2], alone_made(causal)[:, :, :2])
        assert distance(made, alone_made(causal)) > TOLERANCE


def test_one_chunk_in_flight_is_causal_where_the_window_slides() -> None:
    causal = Walk(Causal(Retention(6, 0, Positions.RELATIVE, recache=False)))
    one = Chunks((3,), positions=Positions.RELATIVE, clean_range=3, clean_text="prompt")
    assert distance(alone_made(Walk(one)), alone_made(causal)) < TOLERANCE


@pytest.mark.parametrize(
    "degrees",
    [Degrees(clip=2), Degrees(clip=3), Degrees(clip=2, ring=2), Degrees(clip=2, stages=2)],
    ids=Degrees.describe,
)
def test_workers_make_what_one_process_makes(workers: Any, degrees: Degrees) -> None:
    guidance = 3.0 if degrees.stages > 1 else 1.0
    check_on_workers(workers, Walk(Chunks(RANGES), cues=CUES, guidance=guidance), degrees)


@pytest.mark.parametrize("breaks_after", [1, 2, 6])
def test_killed_run_goes_on_to_the_same_bits(breaks_after: int) -> None:
    check_resume(Walk(Chunks(RANGES), cues=CUES, sampler="unipc"), breaks_after)


def test_29_a_stop_finishes_the_chunks_that_have_begun() -> None:
    walk = Walk(Chunks(RANGES))
    schedule = walk.schedule()
    decoded = []
    for task in schedule:
        if any(part.block == 2 for part in task.parts):
            schedule.stop()
        if task.kind is Kind.DECODE:
            decoded.append(task.block)
    assert decoded == [0, 1, 2]


def test_a_switch_of_prompt_holds_for_the_chunks_that_begin_after_it() -> None:
    schedule = Walk(Chunks(RANGES)).schedule()
    cues: dict[int, set[int]] = {}
    for task in schedule:
        for part in task.parts:
            cues.setdefault(part.block, set()).add(part.cue)
            if part.block == 1 and part.step == 0:
                schedule.switch("y")
    assert cues == {
        0: {0, NO_PROMPT},
        1: {0, NO_PROMPT},
        2: {1, NO_PROMPT},
        3: {1, NO_PROMPT},
        4: {1},
    }


def test_a_planned_switch_changes_only_what_comes_after() -> None:
    before, after = (alone_made(Walk(Chunks(RANGES), cues=cues)) for cues in ((0,), CUES))
    assert distance(before[:, :, :4], after[:, :, :4]) < TOLERANCE
    assert distance(before[:, :, 4:6], after[:, :, 4:6]) > TOLERANCE


@pytest.mark.parametrize(
    ("ranges", "wrong"),
    [
        ({"ranges": ()}, "each stage"),
        ({"ranges": (2, 0)}, "at least 1, got 0"),
        ({"ranges": (2, 1), "sink": 1}, "at least 2, got 1"),
        ({"sink": -1}, "got -1"),
        ({"clean_range": 0}, "got 0"),
        ({"clean_text": "none"}, "'none'"),
    ],
)
def test_what_can_not_be_is_refused(ranges: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        Chunks(**ranges)


def test_steps_that_can_not_be_cut_into_stages_are_refused() -> None:
    with pytest.raises(UserError, match=r"5 steps.*4 stages.*legal are 1, 5"):
        Walk(Chunks(), steps=5).schedule()


def test_an_endless_stream_needs_ranges_and_positions_that_do_not_grow() -> None:
    request, spec = request_and_spec()
    endless = replace(request, seconds=None)
    Chunks(positions=Positions.RELATIVE).check(endless, spec)
    for chunks in (Chunks(), Chunks((None,), positions=Positions.RELATIVE)):
        with pytest.raises(UserError):
            chunks.check(endless, spec)


def request_and_spec() -> tuple[Any, Any]:
    schedule = Walk(Chunks(), steps=4).schedule()
    return schedule.request, schedule.spec
