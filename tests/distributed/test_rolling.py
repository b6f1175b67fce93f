"""Rolling Forcing's schedule; on workers it is as in one process."""

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
from longtake.scheduler.errors import UserError
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Verdict
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.strategies.rolling import Rolling
from longtake.scheduler.task import Kind, Part, Task

ALL_KEPT = Retention(recache=False)
WINDOW = Retention(10, 2, Positions.RELATIVE, recache=False)
CUES = (0, 4)


def noisy(task: Task) -> list[Part]:
    return [part for part in task.parts if part.step is not None]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("blocks", [1, 2, 4, 5, 6, 12])
def test_16_windows_hold_the_blocks_and_levels_that_they_should(blocks: int, steps: int) -> None:
    """Fewer blocks than steps too, which the published code gets wrong."""
    walk = Walk(Rolling(ALL_KEPT, in_flight=steps), frames=2 * blocks, steps=steps)
    windows = [task for task in walk.schedule() if task.kind is Kind.DENOISE]
    assert len(windows) == blocks + steps - 1
    for w, task in enumerate(windows):
        first, last = max(0, w - steps + 1), min(blocks - 1, w)
        assert [part.block for part in noisy(task)] == list(range(first, last + 1))
        assert [part.step for part in noisy(task)] == [w - b for b in range(first, last + 1)]


@pytest.mark.parametrize(("in_flight", "steps"), [(1, 3), (2, 3), (3, 3), (4, 8), (5, 8), (9, 3)])
def test_17_a_block_is_emitted_after_its_last_step_and_committed_once(
    in_flight: int, steps: int
) -> None:
    """With fewer blocks in flight than steps, a window takes several steps before it rolls on."""
    walk = Walk(Rolling(ALL_KEPT, in_flight), frames=14, steps=steps, cues=CUES)
    taken: dict[int, list[int | None]] = {}
    decoded = []
    for task in walk.schedule():
        assert len(noisy(task)) <= in_flight
        for part in task.parts:
            taken.setdefault(part.block, []).append(part.step)
            assert part.last == (part.step == steps - 1)
            assert (part.writes is None) == (part.step is not None)
        if task.kind is Kind.DECODE:
            decoded.append(task.block)
            assert taken[task.block] == list(range(steps))
    assert decoded == list(range(7))
    assert all(steps_of == [*range(steps), None] for steps_of in taken.values())


def test_09_sink_stays_as_near_whatever_the_length_of_the_stream() -> None:
    schedule = Walk(Rolling(WINDOW, in_flight=3), frames=200).schedule()
    launches = [task for task in schedule if task.kind is Kind.DENOISE]
    full = launches[10:-3]
    assert len(full) > 80
    for task in full:
        sink, *past = noisy(task)[0].sees
        assert (sink.frames.start, sink.frames.stop) == (0, 2)
        assert past[0].frames.start > 2  # some are forgotten
        assert past[0].at - (sink.at + 1) == 1
    seen = [tuple(s.at for s in noisy(task)[0].sees) for task in full]
    assert len(set(seen)) == 1


def test_everything_seen_was_written_and_fits() -> None:
    """Of a launch: the sink and `window` frames at most, without gaps but the one after the sink;
    a commit sees clean frames alone."""
    walk = Walk(Rolling(WINDOW, in_flight=3), frames=40)
    schedule = walk.schedule()
    kept: set[int] = set()
    room = schedule.strategy.cached_frames(schedule.request, schedule.spec)
    for task in schedule:
        kept -= {frame for _, span in task.evicts for frame in span.frames()}
        for part in task.parts:
            cached = [f for s in part.sees if s.row is not None for f in s.frames.frames()]
            live = [f for s in part.sees if s.row is None for f in s.frames.frames()]
            assert kept.issuperset(cached)
            assert len(cached) + len(live) + len(part.frames) <= 10
            if part.step is None:
                assert not live
                assert cached == list(range(max(0, part.frames.stop - 10), part.frames.start))
        kept |= {f for p in task.parts if p.writes is not None for f in p.frames.frames()}
        assert len(kept) <= room == 12


def test_one_block_in_flight_is_causal_to_the_bit() -> None:
    one = Walk(Rolling(ALL_KEPT, in_flight=1), cues=CUES)
    assert torch.equal(alone_made(one), alone_made(Walk(Causal(ALL_KEPT), cues=CUES)))


def test_06_a_window_over_all_frames_is_no_window() -> None:
    wide = Retention(10, 2, Positions.ABSOLUTE, recache=False)
    assert torch.equal(alone_made(Walk(Rolling(wide, 3))), alone_made(Walk(Rolling(ALL_KEPT, 3))))


def test_08_positions_in_the_window_and_a_rebased_sink_are_the_same() -> None:
    rebased = Retention(8, 2, Positions.SINK_REBASED, recache=False)
    relative = Retention(8, 2, Positions.RELATIVE, recache=False)
    made = alone_made(Walk(Rolling(rebased, 3), frames=16))
    assert distance(made, alone_made(Walk(Rolling(relative, 3), frames=16))) < TOLERANCE


@pytest.mark.parametrize(
    "degrees",
    [
        Degrees(clip=2),
        Degrees(clip=3),
        Degrees(clip=4),
        Degrees(clip=2, ulysses=2),
        Degrees(clip=2, stages=2),
        Degrees(cfg=2, ring=2),
    ],
    ids=Degrees.describe,
)
def test_workers_make_what_one_process_makes(workers: Any, degrees: Degrees) -> None:
    guidance = 3.0 if degrees.cfg > 1 or degrees.stages > 1 else 1.0
    walk = Walk(Rolling(WINDOW, in_flight=3), frames=14, cues=CUES, guidance=guidance)
    check_on_workers(workers, walk, degrees)


@pytest.mark.parametrize("breaks_after", [1, 6, 13])
def test_killed_run_goes_on_to_the_same_bits(breaks_after: int) -> None:
    walk = Walk(Rolling(WINDOW, in_flight=3), frames=14, cues=CUES, sampler="unipc", steps=5)
    check_resume(walk, breaks_after)


def test_29_stopped_in_the_middle_finishes_the_blocks_that_began() -> None:
    schedule = Walk(Rolling(WINDOW, in_flight=3), frames=20).schedule()
    tasks = list(schedule.tasks(lambda block: Verdict(go=block < 4)))
    assert [task.block for task in tasks if task.kind is Kind.DECODE] == [0, 1, 2, 3]
    assert [part.block for part in tasks[-1].parts] == [3] and tasks[-1].kind is Kind.COMMIT


@pytest.mark.parametrize("prompts", ["own", "newest"])
def test_switch_of_prompt_holds_for_its_blocks_or_for_all_in_flight(prompts: str) -> None:
    rolling = Rolling(WINDOW, in_flight=3, prompts=prompts)  # type: ignore[arg-type]
    schedule = Walk(rolling, frames=14, cues=CUES).schedule()
    first_new = 2  # the block that begins at latent frame 4
    encoded = []
    for task in schedule:
        if task.kind is Kind.ENCODE:
            encoded.append(task.cue)
        for part in noisy(task):
            switched = any(other.block >= first_new for other in noisy(task))
            new = part.block >= first_new or (prompts == "newest" and switched)
            assert part.cue == int(new)
    assert encoded == [0, 1]


def test_refuses_what_does_not_fit() -> None:
    small = Retention(6, 2, Positions.RELATIVE, recache=False)
    with pytest.raises(UserError, match="3 blocks in flight of 2; the least is 8"):
        Walk(Rolling(small, in_flight=3)).schedule()
    Walk(Rolling(small, in_flight=3), frames=4).schedule()  # there are but two blocks
    with pytest.raises(UserError, match="at least 1 block is in flight, got 0"):
        Rolling(small, in_flight=0)
    with pytest.raises(UserError, match="prompts must be own or newest, got 'old'"):
        Rolling(small, prompts="old")  # type: ignore[arg-type]
