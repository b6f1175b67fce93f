"""DualParal: a queue of blocks in the stages, on any number of workers as in one process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytest
import torch
from tests.distributed.walks import (
    TOLERANCE,
    Blocks,
    Walk,
    alone_made,
    check_on_workers,
    check_resume,
    distance,
    take,
)
from torch import Tensor

from longtake.parallel.mesh import Rendezvous
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.plan import EVALUATIONS, Plan
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.dual import Dual
from longtake.scheduler.task import Edge, Kind, Span, Task

SPEC = ModelSpec(8, 12, 16, 64, 4, 2, 1024, 3)
DUAL = Dual(frames=3, context=2)
PROMPTS = Walk(DUAL, frames=15, cues=(0, 8), sampler="unipc", steps=4)  # blocks 5, 3, 3, 3, 1


def schedule(dual: Dual, frames: int | None, steps: int, *cues: float) -> Schedule:
    seconds = None if frames is None else SPEC.pixel_frames(frames) / 16
    request = Request(tuple(Cue(at, f"from {at}") for at in (0, *cues)), seconds, 32, 32, 16)
    return Schedule(dual, request, SPEC, steps)


@pytest.mark.parametrize(("frames", "sampler"), [(5, "unipc"), (4, "few")])
def test_dual_11_lone_block_is_bidirectional_to_the_bit(frames: int, sampler: str) -> None:
    lone = Walk(DUAL, frames=frames, sampler=sampler)
    whole = Walk(Bidirectional(), frames=frames, sampler=sampler)
    assert torch.equal(alone_made(lone), alone_made(whole))


@pytest.mark.parametrize(
    ("degrees", "walk"),
    [
        (Degrees(stages=3), PROMPTS),
        (Degrees(stages=4), Walk(DUAL, frames=15, steps=4, sampler="unipc", layers=4)),
        (Degrees(cfg=2, stages=2), Walk(DUAL, guidance=3.0)),
        (Degrees(stages=2), Walk(DUAL, guidance=3.0)),
        # A long queue: flows must not pile up in the stages.
        (Degrees(stages=2), Walk(Dual(1, 1), frames=9, steps=8, sampler="unipc", grid=(1, 2))),
    ],
    ids=lambda value: value.describe() if isinstance(value, Degrees) else str(value.steps),
)
def test_dual_13_workers_make_what_one_process_makes(
    workers: Any, degrees: Degrees, walk: Walk
) -> None:
    check_on_workers(workers, walk, degrees)


@pytest.mark.parametrize("breaks_after", [1, 2, 3, 5, 8, 9])
def test_killed_run_goes_on_to_the_same_bits(breaks_after: int) -> None:
    """States are kept where an iteration ends, so no key of a noisy block has to be remembered."""
    check_resume(PROMPTS, breaks_after)


@dataclass
class History(Blocks):
    """Keeps every state, with the blocks that were finished by then."""

    states: list[tuple[dict[int, Tensor], tuple[int, dict[str, Tensor]]]] = field(
        default_factory=list
    )

    def write_state(self, tick: int, tensors: dict[str, Tensor]) -> None:
        super().write_state(tick, tensors)
        assert self.state is not None
        self.states.append((dict(self.made), self.state))


def record_states(rendezvous: Rendezvous, walk: Walk, degrees: Degrees) -> History:
    """For the pool."""
    history = History()
    take(walk, degrees, rendezvous, history)
    return history


def test_state_that_is_kept_while_stages_are_full_is_one_to_go_on_from(workers: Any) -> None:
    """Launches that began before the flow came back are not part of it."""
    history = workers.run(2, record_states, PROMPTS, Degrees(stages=2), timeout=60)[0]
    assert [len(made) for made, _ in history.states] == [1, 2, 3, 4, 5]
    made, state = history.states[1]
    again = take(PROMPTS, blocks=Blocks(made, state)).latents
    assert distance(again, alone_made(PROMPTS)) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(
    ("frames", "context", "total"), [(3, 2, 20), (2, 2, 21), (4, 1, 5), (1, 1, 9)]
)
def test_dual_12_steps_context_and_order(steps: int, frames: int, context: int, total: int) -> None:
    """Tail first; each block takes its steps in order, and sees the one before after one more."""
    dual = Dual(frames, context)
    walked = schedule(dual, total, steps)
    taken: dict[int, int] = {}
    order = []
    for task in walked:
        if task.kind is Kind.DECODE:
            assert taken[task.block] == steps
            order.append(task.block)
        elif task.kind is Kind.DENOISE:
            own = task.parts[-1]
            assert own.step == taken.setdefault(own.block, 0) and not own.idle
            assert own.last == (own.step == steps - 1)
            if own.block:
                (before, _) = task.parts
                assert before.idle and (before.block, before.step) == (own.block - 1, own.step)
                assert before.frames == Span(own.frames.start - context, own.frames.start)
                assert taken[before.block] == min(own.step + 1, steps)
            later = [block for block, done in taken.items() if block > own.block and done < steps]
            assert all(taken[block] <= own.step for block in later)
            taken[own.block] += 1
    assert order == sorted(taken) == list(range(walked.blocks or 0))


def test_dual_20_a_block_is_decoded_as_it_leaves() -> None:
    """Before the launches of the next iteration, in which another block joins."""
    begun, decoded = set[int](), 0
    for task in schedule(Dual(3, 2), 60, 4):
        begun.update(part.block for part in task.parts)
        if task.kind is Kind.DECODE:
            assert task.block == decoded and max(begun) <= decoded + 3
            decoded += 1
    assert decoded == len(begun) > 10


def test_dual_17_keys_of_the_block_after_are_of_its_step_right_before() -> None:
    """They come from the launch before, in the same iteration, and never from the launch itself. So
    where none are carried over, a killed run may go on."""
    kept: dict[int, int] = {}  # frame: the tick of the launch that wrote its keys
    latest, latest_block, carried, seen = -1, -1, False, 0
    for task in schedule(Dual(4, 3), 40, 5):
        if task.kind is not Kind.DENOISE:
            continue
        for _, gone in task.evicts:
            for frame in gone.frames():
                del kept[frame]
        own = task.parts[-1]
        cached = [look for look in own.sees if look.row is not None]
        assert bool(cached) == (latest_block == task.block + 1) == carried
        for look in cached:
            assert look.frames.start == own.frames.stop
            assert look.at == own.at + len(own.frames)
            assert {kept[frame] for frame in look.frames.frames()} == {latest}
            seen += 1
        for part in task.parts:
            assert [look for look in part.sees if look.row is not None] == cached
        if own.writes is not None:
            assert not set(own.kept.frames()) & set(kept)
            kept |= dict.fromkeys(own.kept.frames(), task.tick)
        assert len(kept) <= 2 * 3
        latest, latest_block, carried = task.tick, task.block, task.keeps_noisy
    assert seen == 9 * 4  # all steps of ten blocks but the first ones and those of the last block


@pytest.mark.parametrize("frames", range(1, 24))
def test_dual_15_as_many_frames_as_asked_for(frames: int) -> None:
    decoded = [task.frames for task in schedule(DUAL, frames, 2) if task.kind is Kind.DECODE]
    assert [frame for span in decoded for frame in span.frames()] == list(range(frames))
    assert {len(span) for span in decoded[1:-1]} <= {DUAL.frames}


@pytest.mark.parametrize(
    ("stages", "steps", "blocks", "idle"),
    [
        (2, 50, 5, 2**2 - 1),
        (3, 50, 20, 3**2 - 1),
        (4, 50, 20, 4**2 - 1),
        (8, 50, 32, 8**2 - 1),
        (8, 50, 5, 231),  # fewer blocks than stages
        (8, 4, 32, 155),  # fewer steps than stages
    ],
)
def test_dual_18_idle_slots_are_those_of_the_closed_form(
    stages: int, steps: int, blocks: int, idle: int
) -> None:
    dual = Dual(2, 1)
    walked = schedule(dual, 1 + 2 * blocks, steps)
    assert walked.blocks == blocks
    length, most = slots(Plan(Degrees(stages=stages)), walked)
    assert length - steps * blocks == idle
    assert most == min(stages, steps, blocks) + (idle < stages**2)


def slots(plan: Plan, tasks: Iterable[Task]) -> tuple[int, int]:
    """How long the lanes take, each in its own order, if an evaluation takes 1 and all else
    nothing; and of how many blocks there are evaluations under way at once."""
    free = dict.fromkeys(plan.lanes, 0)
    sent: dict[Edge, list[int]] = {}
    underway: list[int] = []
    most = 0
    for part in plan.parts(tasks):
        lane = plan.lane_of(part)
        start = max([free[lane], *(sent[edge].pop(0) for edge in plan.incoming(part))])
        free[lane] = start + (part.kind in EVALUATIONS)
        for edge in plan.outgoing(part):
            sent.setdefault(edge, []).append(free[lane])
        if part.kind is Kind.ADVANCE:
            underway.remove(part.block)
        elif part.kind is Kind.DENOISE and part.stage == 0:
            underway.append(part.block)
            most = max(most, len(set(underway)))
    return max(free.values()), most


def test_prompt_holds_for_blocks_that_join_after_it() -> None:
    walked = schedule(DUAL, 40, 4, 3.0)
    cues: dict[int, set[int]] = {}
    for task in walked:
        if task.block == 6 and task.kind is Kind.ENCODE:
            raise AssertionError("the switch by hand was for a block after it")
        if task.kind is Kind.DENOISE:
            cues.setdefault(task.block, set()).add(task.parts[-1].cue)
            assert len({part.cue for part in task.parts}) == 1
            assert task.cue <= task.parts[-1].cue
            if task.block == 6 and task.step == 0:
                assert walked.switch("by hand").block == 7
    first = next(b for b in cues if SPEC.pixel_frames(2 + 3 * b) >= 3 * 16)
    expected = [{0}] * first + [{1}] * (7 - first) + [{2}] * (len(cues) - 7)
    assert [cues[block] for block in sorted(cues)] == expected


def test_29_stopped_video_ends_with_the_blocks_that_have_begun() -> None:
    walked, taken, decoded = schedule(DUAL, None, 4), 0, []
    for task in walked:
        taken += task.kind is Kind.DENOISE
        if task.kind is Kind.DECODE:
            decoded.append(task.block)
        if task.tick == 60:
            walked.stop()
    assert len(decoded) > 10 and taken == 4 * len(decoded) and decoded == sorted(decoded)


def test_endless_video_keeps_no_more_than_a_queue() -> None:
    steps, held, begun = 5, set(), 0
    for task in islice(schedule(DUAL, None, steps), 5000):
        held |= set(task.blocks)
        begun = max(begun, task.block)
        held -= set(task.drops)
        assert len(held) <= steps + 1
        assert all(len(part.sees) <= 2 for part in task.parts)
    assert begun > 800


@pytest.mark.parametrize(
    ("frames", "context", "message"),
    [
        (0, 0, "at least 1 latent frame, got 0"),
        (3, 0, "the context is 1 to 3 latent frames, as many as a block has; got 0"),
        (3, 4, "the context is 1 to 3 latent frames, as many as a block has; got 4"),
    ],
)
def test_blocks_and_context_that_make_no_sense(frames: int, context: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dual(frames, context)


def test_what_the_model_or_the_length_has_no_room_for() -> None:
    with pytest.raises(UserError, match="1200 positions, but the model's rotary table has 1024"):
        schedule(Dual(400, 400), 2000, 2)
    with pytest.raises(UserError, match=r"at 1.0625 s and then every 0.75 s, and no block is left"):
        schedule(DUAL, 7, 2, 1.2)
    schedule(DUAL, 7, 2, 1.0)


def test_workers_are_for_the_stages() -> None:
    with pytest.raises(UserError, match="a clip degree of 2"):
        Degrees(clip=2).check(SPEC, 1.0, DUAL.clips(schedule(DUAL, 20, 2).request, SPEC))


def test_the_first_block_of_a_queue_is_longer() -> None:
    assert Dual(3, 2).seams(9) == [5, 8]


def test_seams_of_a_queue_are_not_those_of_a_lone_block() -> None:
    """The neighbours are seen: without them the same noise gives other frames."""
    made = alone_made(Walk(DUAL, frames=10))
    lone = alone_made(Walk(DUAL, frames=5))
    assert distance(made[:, :, :5], lone) > 100 * TOLERANCE
