"""The moving buffer; on workers it is as in one process."""

from __future__ import annotations

from collections.abc import Iterator
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
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule, Verdict
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.buffer import Buffer
from longtake.scheduler.task import Kind, Part, Task

CUES = (0, 4)


class Blind(Buffer):
    """Its blocks don't see each other."""

    def tasks(self, *args: Any) -> Iterator[Task]:
        for task in super().tasks(*args):
            yield replace(task, parts=tuple(replace(part, sees=()) for part in task.parts))


def noisy(task: Task) -> list[Part]:
    return [part for part in task.parts if part.step is not None]


@pytest.mark.parametrize("blocks", [1, 3, 4, 12])
def test_levels_rise_through_the_buffer_and_one_block_leaves_a_tick(blocks: int) -> None:
    steps = 4
    schedule = Walk(Buffer(steps), frames=2 * blocks, steps=steps).schedule()
    launches = [task for task in schedule if task.kind is Kind.DENOISE]
    assert len(launches) == blocks + steps - 1
    for tick, task in enumerate(launches):
        first, last = max(0, tick - steps + 1), min(blocks - 1, tick)
        assert [part.block for part in task.parts] == list(range(first, last + 1))
        assert [part.step for part in task.parts] == [tick - b for b in range(first, last + 1)]


@pytest.mark.parametrize("references", [0, 1, 3])
@pytest.mark.parametrize(("in_flight", "steps"), [(1, 3), (2, 3), (3, 3), (4, 8), (9, 3)])
def test_17_a_block_is_emitted_after_its_last_step(
    in_flight: int, steps: int, references: int
) -> None:
    walk = Walk(Buffer(in_flight, references), frames=14, steps=steps, cues=CUES)
    taken: dict[int, list[int | None]] = {}
    decoded: list[int] = []
    dropped: list[int] = []
    for task in walk.schedule():
        there = [part.block for part in task.parts if part.idle]
        front = noisy(task)[0].block if task.parts else 0
        assert len(noisy(task)) <= in_flight or not task.parts
        if task.parts:
            assert there == list(range(max(0, front - references), front))
        for part in noisy(task):
            assert part.last == (part.step == steps - 1)
            taken.setdefault(part.block, []).append(part.step)
        dropped += task.drops
        if task.kind is Kind.DECODE:
            decoded.append(task.block)
            assert taken[task.block] == list(range(steps))
    assert decoded == list(range(7)) and dropped == list(range(7 - references))
    assert all(steps_of == list(range(steps)) for steps_of in taken.values())


@pytest.mark.parametrize("references", [0, 2])
def test_all_see_all_at_positions_counted_in_the_buffer(references: int) -> None:
    schedule = Walk(Buffer(3, references), frames=40).schedule()
    for task in schedule:
        places = {}
        for part in task.parts:
            seen = {seen.frames.start: seen.at for seen in part.sees}
            assert all(seen.row is None for seen in part.sees) and part.writes is None
            places[part.block] = {**seen, part.frames.start: part.at}
        if task.parts:
            counted = {p.frames.start: 2 * i for i, p in enumerate(task.parts)}
            assert all(place == counted for place in places.values())


def test_one_block_alone_is_bidirectional_to_the_bit() -> None:
    one = Walk(Buffer(in_flight=4), frames=2)
    assert torch.equal(alone_made(one), alone_made(Walk(Bidirectional(), frames=2)))


def test_13_a_launch_of_mixed_levels_is_as_its_blocks_are_alone() -> None:
    blind, alone = Walk(Blind(in_flight=3), frames=8), Walk(Buffer(in_flight=1), frames=8)
    assert distance(alone_made(blind), alone_made(alone)) < TOLERANCE


def test_what_left_is_forgotten_but_for_references() -> None:
    """With one block in flight, blocks are made apart; a reference ties them together."""
    apart, tied = alone_made(Walk(Buffer(1), frames=4)), alone_made(Walk(Buffer(1, 1), frames=4))
    assert torch.equal(apart[:, :, :2], tied[:, :, :2])
    assert not torch.allclose(apart[:, :, 2:], tied[:, :, 2:], atol=1e-3)


@pytest.mark.parametrize(
    ("degrees", "references"),
    [
        (Degrees(clip=2), 0),
        (Degrees(clip=3), 1),
        (Degrees(clip=4), 1),
        (Degrees(ring=2), 0),
        (Degrees(clip=2, stages=2), 1),
        (Degrees(cfg=2, clip=2), 0),
    ],
    ids=lambda value: value.describe() if isinstance(value, Degrees) else str(value),
)
def test_workers_make_what_one_process_makes(
    workers: Any, degrees: Degrees, references: int
) -> None:
    guidance = 3.0 if degrees.cfg > 1 or degrees.stages > 1 else 1.0
    walk = Walk(Buffer(3, references, "own"), frames=12, cues=CUES, guidance=guidance)
    check_on_workers(workers, walk, degrees)


@pytest.mark.parametrize(("breaks_after", "references"), [(2, 0), (7, 0), (1, 2), (6, 2), (11, 2)])
def test_killed_run_goes_on_to_the_same_bits(breaks_after: int, references: int) -> None:
    walk = Walk(Buffer(3, references), frames=12, cues=CUES, sampler="unipc", steps=5)
    check_resume(walk, breaks_after)


def test_29_stopped_in_the_middle_finishes_the_blocks_that_began() -> None:
    schedule = Walk(Buffer(3), frames=20).schedule()
    tasks = list(schedule.tasks(lambda block: Verdict(go=block < 4)))
    assert [task.block for task in tasks if task.kind is Kind.DECODE] == [0, 1, 2, 3]
    assert tasks[-1].kind is Kind.DECODE


@pytest.mark.parametrize("prompts", ["own", "newest"])
def test_switch_of_prompt_holds_for_its_blocks_or_for_the_buffer(prompts: str) -> None:
    buffer = Buffer(3, 1, prompts=prompts)  # type: ignore[arg-type]
    for task in Walk(buffer, frames=14, cues=CUES).schedule():
        switched = any(part.block >= 2 for part in task.parts)
        for part in noisy(task):
            new = part.block >= 2 or (prompts == "newest" and switched)
            assert part.cue == int(new)


def test_streams_without_end_in_constant_room() -> None:
    walk = Walk(Buffer(3, 1))
    spec = walk.schedule().spec
    request = Request((Cue(0, "x"),), None, 48, 80, 16)
    schedule = Schedule(walk.strategy, request, spec, 3)
    assert schedule.blocks is None and walk.strategy.clips(request, spec) == 4
    assert walk.strategy.longest_launch(request, spec) == 8
    alive: set[int] = set()
    for task in schedule.tasks(lambda block: Verdict(go=block < 50)):
        alive |= set(task.blocks if task.parts else ())
        alive -= set(task.drops)
        assert len(alive) <= 4


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(UserError, match="at least 1 block is in flight, got 0"):
        Buffer(0)
    with pytest.raises(UserError, match="references must be at least 0 blocks, got -1"):
        Buffer(3, -1)
