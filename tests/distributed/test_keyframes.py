"""Coarse to fine: with one level it is bidirectional; on workers it is as in one process."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
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
    take,
)

from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.keyframes import Keyframes
from longtake.scheduler.task import Kind, Part, Task

HALVES = Keyframes(fanout=2)
CUES = (0, 4)


def launches(walk: Walk) -> list[tuple[Part, ...]]:
    """Of every level, the first launch."""
    parts = [task.parts for task in walk.schedule() if task.parts]
    return parts[:: walk.steps]


def asked(walk: Walk) -> tuple[Request, ModelSpec]:
    schedule = walk.schedule()
    return schedule.request, schedule.spec


def looks(part: Part) -> list[tuple[int, int]]:
    """Block and position of everything that a part of two frames sees, and of itself."""
    seen = [(look.frames.start // 2, look.at) for look in part.sees]
    return sorted([*seen, (part.block, part.at)])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["few", "unipc"])
def test_one_level_is_bidirectional_to_the_bit(sampler: str, guidance: float) -> None:
    whole = Walk(Bidirectional(), frames=7, guidance=guidance, sampler=sampler)
    one = replace(whole, strategy=Keyframes(levels=1))
    assert torch.equal(alone_made(one), alone_made(whole))


@pytest.mark.parametrize("fanout", [2, 3, 15])
def test_blocks_are_as_many_as_the_levels_reach(fanout: int) -> None:
    """NUWA-XL: (L - 1) ** m + 1 after m levels, where L are made or there in a stretch."""
    for levels in (2, 3):
        blocks = fanout**levels + 1
        if blocks > 300:
            continue
        walk = Walk(Keyframes(fanout=fanout), frames=2 * blocks)
        made = [sum(part.step is not None for part in parts) for parts in launches(walk)]
        assert made[0] == fanout + 1
        assert made == [fanout + 1, *((fanout - 1) * fanout**i for i in range(1, levels))]
        assert Keyframes(fanout=fanout).depth(*asked(walk)) == levels
        longer = replace(walk, frames=walk.frames + 1)
        assert Keyframes(fanout=fanout).depth(*asked(longer)) == levels + 1


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 8, 9, 17, 30])
@pytest.mark.parametrize("keyframes", [HALVES, Keyframes(3, 3), Keyframes(2, 4), Keyframes(5, 2)])
def test_17_every_block_takes_its_steps_once_and_is_shown_in_order_of_time(
    keyframes: Keyframes, blocks: int
) -> None:
    if blocks <= 2 and keyframes.levels is None:
        keyframes = replace(keyframes, levels=2)
    walk = Walk(keyframes, frames=2 * blocks, cues=CUES if blocks > 2 else (0,))
    taken: dict[int, list[int]] = {}
    shown: list[int] = []
    dropped: list[int] = []
    for task in walk.schedule():
        for part in task.parts:
            clean = taken.get(part.block, []) == [0, 1, 2]
            assert clean == (part.step is None) == part.idle
            assert part.block not in dropped
            if part.step is not None:
                taken.setdefault(part.block, []).append(part.step)
                assert part.last == (part.step == 2)
        dropped += task.drops
        if task.kind is Kind.DECODE:
            shown.append(task.block)
            assert taken[task.block] == [0, 1, 2]
    assert shown == sorted(dropped) == sorted(taken) == list(range(blocks))
    assert set(map(tuple, taken.values())) == {(0, 1, 2)}


def test_a_block_between_sees_its_stretch_and_no_other() -> None:
    """Blocks 0 to 9: level by level, what is between 0, 4, 8, 9, then between all of 0, 2, ..."""
    first, second, third = launches(Walk(Keyframes(3, 2), frames=20))
    assert [part.block for part in first] == [0, 4, 8, 9]
    assert [p.block for p in second if p.step is not None] == [2, 6]
    assert [p.block for p in third if p.step is not None] == [1, 3, 5, 7]
    assert 9 not in [part.block for part in second], "nothing lies between it and 8"
    seen = {part.block: [block for block, _ in looks(part)] for part in third}
    assert seen[1] == [0, 1, 2] and seen[3] == [2, 3, 4] and seen[7] == [6, 7, 8]
    assert seen[0] == [0, 1, 2] and seen[2] == [0, 1, 2, 3, 4] and seen[8] == [6, 7, 8]


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("positions", ["spaced", "adjacent"])
def test_blocks_stand_as_far_apart_as_they_are_or_side_by_side(positions: str, level: int) -> None:
    """TempoMaster's index maps: neighbours in a level are `fanout ** i` apart."""
    walk = Walk(Keyframes(3, 3, positions), frames=2 * 28)  # type: ignore[arg-type]
    apart = {"spaced": 2 * 3 ** (2 - level), "adjacent": 2}[positions]
    for part in launches(walk)[level]:
        for (before, low), (after, high) in pairwise(looks(part)):
            assert high - low == apart and after - before == 3 ** (2 - level)


def test_positions_between_do_not_grow_with_the_video() -> None:
    """All levels but the first stand at positions that do not grow with the video."""
    walk = Walk(Keyframes(3, 4), frames=2 * 65)
    for parts in launches(walk)[1:]:
        assert max(position for part in parts for _, position in looks(part)) <= 2 * 4 * 4 * 2


@pytest.mark.parametrize(
    ("degrees", "guidance"),
    [
        (Degrees(clip=2), 1.0),
        (Degrees(clip=3), 1.0),
        (Degrees(clip=2, stages=2), 3.0),
        (Degrees(clip=4), 1.0),
    ],
    ids=str,
)
def test_workers_make_what_one_process_makes(
    workers: Any, degrees: Degrees, guidance: float
) -> None:
    check_on_workers(workers, Walk(HALVES, frames=14, cues=CUES, guidance=guidance), degrees)


@pytest.mark.parametrize("breaks_after", [1, 3, 4, 6])
def test_killed_run_goes_on_to_the_same_bits(breaks_after: int) -> None:
    """Blocks are finished out of order: 3 of the first level and its state, then those between."""
    check_resume(Walk(HALVES, cues=CUES, sampler="unipc"), breaks_after)


def test_a_run_that_was_killed_at_its_end_makes_nothing_again() -> None:
    walk = Walk(HALVES)
    done = take(walk)
    assert done.state is not None and not done.state[1]
    assert torch.equal(take(walk, blocks=done).latents, alone_made(walk))


def test_a_stop_before_a_block_ends_the_video_there() -> None:
    schedule = Walk(HALVES).schedule()
    shown = []
    for task in schedule:
        if task.kind is Kind.ENCODE:
            schedule.stop()
        if task.kind is Kind.DECODE:
            shown.append(task.block)
    assert shown == [0], "the first block had begun"


def test_29_all_blocks_begin_before_the_first_launch_so_a_later_stop_finishes_them() -> None:
    schedule = Walk(HALVES).schedule()
    shown = []
    for task in schedule:
        if task.parts:
            schedule.stop()
            with pytest.raises(UserError, match="the last block has begun"):
                schedule.switch("y")
        if task.kind is Kind.DECODE:
            shown.append(task.block)
    assert shown == [0, 1, 2, 3, 4]


def test_blocks_run_under_the_prompt_of_their_time() -> None:
    tasks: list[Task] = list(Walk(HALVES, frames=14, cues=CUES).schedule())
    encoded = [task.cue for task in tasks if task.kind is Kind.ENCODE]
    assert encoded == [0, 1]
    assert {part.block: part.cue for task in tasks for part in task.parts} == {
        block: int(block >= 2) for block in range(7)
    }
    one, two = (alone_made(Walk(HALVES, frames=14, cues=cues)) for cues in ((0,), CUES))
    assert distance(one, two) > TOLERANCE


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"levels": 0}, "got 0"),
        ({"fanout": 1}, "fanout of 1"),
        ({"positions": "true"}, "'true'"),
    ],
)
def test_what_can_not_be_is_refused(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        Keyframes(**settings)


def test_requests_that_can_not_be_are_refused() -> None:
    request, spec = asked(Walk(HALVES))
    with pytest.raises(UserError, match="can't be endless"):
        HALVES.check(replace(request, seconds=None), spec)
    with pytest.raises(UserError, match="takes one prompt"):
        Keyframes(levels=1).check(asked(Walk(HALVES, cues=CUES))[0], spec)
    adjacent = Keyframes(3, positions="adjacent")
    long = asked(Walk(adjacent, frames=1100))[0]
    with pytest.raises(UserError, match=r"over 1100 positions.*1024 rows; set .* adjacent"):
        Keyframes(3).check(long, spec)
    with pytest.raises(UserError, match=r"over 1100 positions.*; set more strategy\.levels"):
        Keyframes(1).check(long, spec)


def test_two_prompts_need_two_levels_however_short_the_video() -> None:
    assert HALVES.depth(*asked(Walk(HALVES, frames=4, cues=(0, 2)))) == 2
    assert HALVES.depth(*asked(Walk(HALVES, frames=4))) == 1
