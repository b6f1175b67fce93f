"""The stream batch: rows of noisy keys; on workers as in one process; resumed to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tests.distributed.walks import (
    TOLERANCE,
    Blocks,
    Broken,
    Walk,
    alone_made,
    check_on_workers,
    check_resume,
    distance,
    take,
)

from longtake.parallel.mesh import Mesh, Rendezvous
from longtake.parallel.store import SharedStore
from longtake.runtime.noise import SeededNoise
from longtake.runtime.source import Mixing, SharedSource, VideoSource
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule, Script, Verdict
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.strategies.stream import StreamBatch
from longtake.scheduler.task import Kind, Task

ALL_KEPT = Retention(recache=False)
WINDOW = Retention(6, 2, Positions.RELATIVE, recache=False)
CUES = (0, 6)


@dataclass(frozen=True)
class WithoutCommit(Causal):
    """Causal generation that leaves the keys of a block's last step."""

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        tasks = super().tasks(request, spec, steps, script)
        return (task for task in tasks if task.kind is not Kind.COMMIT)


@pytest.mark.parametrize("retention", [ALL_KEPT, WINDOW], ids=["all", "window"])
def test_19_with_one_step_it_is_causal_without_commit(retention: Retention) -> None:
    batch = Walk(StreamBatch(retention, 1, together=1), steps=1, cues=CUES)
    made, true = alone_made(batch), alone_made(Walk(WithoutCommit(retention), steps=1, cues=CUES))
    if retention is ALL_KEPT:
        assert torch.equal(made, true)
    assert distance(made, true) < TOLERANCE  # the other cache reads a full window in another order


@pytest.mark.parametrize(
    ("degrees", "apart"),
    [
        (Degrees(clip=2), 1),
        (Degrees(clip=3), 1),
        (Degrees(stages=3), 3),
        (Degrees(clip=2, stages=2), 2),
        (Degrees(cfg=2, ring=2), 1),
        (Degrees(ulysses=3), 2),
    ],
    ids=str,
)
def test_12_workers_make_what_one_process_makes(workers: Any, degrees: Degrees, apart: int) -> None:
    walk = Walk(StreamBatch(WINDOW, 3, apart=apart), 14, cues=CUES, guidance=float(degrees.cfg))
    check_on_workers(workers, walk, degrees)
    assert distance(alone_made(walk), alone_made(plain(walk))) < TOLERANCE


def video(mesh: Mesh) -> SharedSource:
    """What all blocks of a walk begin from: frames that get brighter, faster and faster."""
    if mesh.rank > 0:
        return SharedSource(mesh, None)
    frames = (np.full((48, 80, 3), i * i // 12, np.uint8) for i in range(53))
    spec = Walk(StreamBatch(WINDOW, 3)).schedule().spec

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        small = pixels[:, :, ::4, ::8, ::8]
        return torch.cat([small, small[:, :1]], dim=1)

    mixing = Mixing(noise_scale=0.99, motion=0.02)
    return SharedSource(mesh, VideoSource(frames, encode, SeededNoise(3), spec, (80, 48), mixing))


def take_video(rendezvous: Rendezvous, walk: Walk, degrees: Degrees) -> torch.Tensor | None:
    """For the pool."""
    made = take(walk, degrees, rendezvous, source=video)
    return made.latents if rendezvous.rank == 0 else None


def test_12_workers_make_what_one_process_makes_of_a_video(workers: Any) -> None:
    """Its frames are rank 0's; the level of a block's first step is known to all stages."""
    walk = Walk(StreamBatch(WINDOW, 3, apart=2), 14)
    true = take(walk, source=video).latents
    made = workers.run(4, take_video, walk, Degrees(clip=2, stages=2), timeout=60)[0]
    assert distance(made, true) < TOLERANCE
    assert distance(true, alone_made(walk)) > 100 * TOLERANCE


def keys_left(rendezvous: Rendezvous, walk: Walk, degrees: Degrees) -> int:
    """In the table that rank 0 keeps."""
    meshes = []

    def noticed(mesh: Mesh) -> SharedSource:
        meshes.append(mesh)
        return video(mesh)

    take(walk, degrees, rendezvous, source=noticed)
    store = meshes[0].store
    assert isinstance(store, SharedStore)
    return store.table.num_keys() if rendezvous.rank == 0 else 0


def test_a_longer_stream_leaves_no_more_in_the_table(workers: Any) -> None:
    """Nothing of what rank 0 decides, tells of the video, and hears of the frames in the sink; but
    for the last launches, of which nobody asks any more."""
    batch = StreamBatch(replace(WINDOW, window=8), 2, apart=2, likeness=1.0)
    left = [
        workers.run(3, keys_left, Walk(batch, frames, steps=2), Degrees(stages=3), timeout=60)[0]
        for frames in (12, 14)
    ]
    assert left[0] == left[1]


def test_29_a_stream_ends_with_its_video() -> None:
    """All blocks that began are finished, and the request is not."""
    made = take(Walk(StreamBatch(WINDOW, 3), 100), source=video)
    assert made.latents.shape[2] == 14


@dataclass(frozen=True)
class Watched(StreamBatch):
    """Notes its launches, and what it heard of them, by tick."""

    launched: dict[int, Task] = field(default_factory=dict, compare=False)
    heard: dict[int, list[list[float]]] = field(default_factory=dict, compare=False)

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        ask = script.on_likeness

        def listen(tick: int) -> list[list[float]] | None:
            found = ask(tick)
            if found is not None:
                self.heard[tick] = found
            return found

        script.on_likeness = listen
        for task in super().tasks(request, spec, steps, script):
            if task.parts:
                self.launched[task.tick] = task
            yield task


def sinks(task: Task, row: int) -> list[int] | None:
    """The frames before the last two blocks that are seen in a row."""
    for part in task.parts:
        if part.step == row and part.compares:
            return [frame for _, frame in part.compares]
    return None


@pytest.mark.parametrize("likeness", [-1.0, 1.0])
def test_20_the_sink_never_changes_or_with_every_block(likeness: float) -> None:
    batch = Watched(replace(WINDOW, window=8), 2, likeness=likeness)
    take(Walk(batch, 24, steps=2))
    assert bool(batch.heard) == (likeness == 1)
    for row in range(2):
        found = [s for task in batch.launched.values() if (s := sinks(task, row)) is not None]
        if likeness == -1:
            assert found == []
            continue
        assert len(found) > 5 and all(len(sink) == 2 for sink in found)
        # The first two launches that compare change nothing yet.
        assert all(a != b for a, b in pairwise(found[1:])) and found[0] == found[1] == [0, 1]


def test_20_the_frame_that_is_unlike_the_newest_goes() -> None:
    """Two launches later: the stages may be at work on those between."""
    walk = Walk(StreamBatch(replace(WINDOW, window=8), 2, likeness=0.5), 24, steps=2)
    counts = {task.tick: [len(part.compares) for part in task.parts] for task in launches(walk)}
    ticks = [tick for tick, numbers in counts.items() if any(numbers)]

    def answer(tick: int) -> list[list[float]]:
        return [[0.9, 0.4 if tick == ticks[3] else 0.6][:number] for number in counts[tick]]

    schedule = walk.schedule()
    schedule.script.on_likeness = answer
    compared = [task for task in schedule if task.tick in ticks]
    newest = {part.step: part.frames.stop - 1 for part in compared[3].parts}
    found = [
        (index, row, sinks(task, row)) for index, task in enumerate(compared) for row in (0, 1)
    ]
    for index, row, sink in found:
        assert sink in (None, [0, 1] if index < 5 else [0, newest[row]]), (index, row)
    assert [index for index, _, sink in found if sink is None] == [0, len(compared) - 1]


@pytest.mark.parametrize(
    "degrees",
    [Degrees(clip=2, ring=2), Degrees(ulysses=2), Degrees(stages=3)],
    ids=Degrees.describe,
)
def test_20_workers_renew_the_sink_as_one_process_does(workers: Any, degrees: Degrees) -> None:
    watched = Watched(replace(WINDOW, window=8), 2, likeness=1.0)
    take(Walk(watched, 18, steps=2))
    found = sorted(x for parts in watched.heard.values() for part in parts for x in part)
    middle = len(found) // 2
    batch = StreamBatch(watched.retention, 2, likeness=(found[middle] + found[middle + 1]) / 2)
    check_on_workers(workers, Walk(batch, 18, steps=2), degrees)


def plain(walk: Walk) -> Walk:
    """The same walk with all steps of a block one tick apart."""
    return Walk(StreamBatch(WINDOW, 3), walk.frames, cues=walk.cues, guidance=walk.guidance)


@pytest.mark.parametrize("breaks_after", [1, 2, 4])
def test_29_killed_run_goes_on_to_the_same_bits(breaks_after: int) -> None:
    check_resume(Walk(StreamBatch(WINDOW, 3), cues=CUES, sampler="unipc"), breaks_after)


def test_29_run_from_a_video_that_is_killed_before_its_stream_begins_goes_on() -> None:
    """Until then there is a state, and the level of the first step is of each block its own."""
    walk = Walk(StreamBatch(WINDOW, 3), 14, sampler="unipc")
    blocks = Blocks(breaks_after=1)
    with pytest.raises(Broken):
        take(walk, blocks=blocks, source=video, state_every=0.0)
    assert blocks.state is not None and not blocks.made
    blocks.breaks_after = None
    again = take(walk, blocks=blocks, source=video).latents
    assert torch.equal(again, take(walk, source=video).latents)


def test_26_two_interleaved_streams_are_as_alone() -> None:
    """One stream is walked whole while another is in its middle."""
    walk, other = (Walk(StreamBatch(WINDOW, 3, apart=apart), cues=CUES) for apart in (1, 2))

    class Interrupting(Blocks):
        def write(self, block: int, latents: torch.Tensor) -> None:
            super().write(block, latents)
            if block == 2:
                assert torch.equal(take(other).latents, alone_made(other))

    assert torch.equal(take(walk, blocks=Interrupting()).latents, alone_made(walk))


def launches(walk: Walk) -> Iterator[Task]:
    return (task for task in walk.schedule() if task.parts)


@pytest.mark.parametrize("apart", [1, 3])
@pytest.mark.parametrize("together", [1, 2])
def test_19_rows_hold_keys_of_their_own_step_and_one_block_leaves_a_tick(
    together: int, apart: int
) -> None:
    steps, blocks = 4, 14
    batch = StreamBatch(WINDOW, steps, together, apart)
    walk = Walk(batch, 2 * blocks, steps=steps)
    written: dict[tuple[int, int], int] = {}  # row and frame: the step of its keys
    finished = []
    for task in launches(walk):
        for row, frames in task.evicts:
            for frame in frames.frames():
                del written[row, frame]
        for part in task.parts:
            if part.block >= together:
                seen = [f for s in part.sees for f in s.frames.frames()]
                assert all(s.row in (part.step, steps) for s in part.sees)
                assert seen == [f for span in WINDOW.context(part.frames) for f in span.frames()]
                steps_seen = {written[s.row, f] for s in part.sees for f in s.frames.frames()}
                assert steps_seen <= {part.step, steps - 1}
        for part in task.parts:
            if part.writes is not None:
                written |= {(part.writes, frame): part.step for frame in part.frames.frames()}
        assert len(written) <= batch.cached_frames(walk.schedule().request, walk.schedule().spec)
        finished.append(task.finishes)
    ramp = (steps - 1) * apart
    assert finished[: steps - 1] == [()] * (steps - 1)
    assert finished[steps - 1] == tuple(range(together))
    assert finished[steps : steps + ramp] == [()] * ramp
    assert finished[steps + ramp :] == [(block,) for block in range(together, blocks)]


@pytest.mark.parametrize("apart", [1, 2, 3])
@pytest.mark.parametrize("stop", [1, 2, 3, 6, 7])
def test_29_blocks_take_their_steps_once_and_those_that_began_are_finished(
    stop: int, apart: int
) -> None:
    schedule = Walk(StreamBatch(WINDOW, 3, 2, apart), 14).schedule()
    taken: dict[int, list[int | None]] = {}
    decoded = []
    for task in schedule.tasks(lambda block: Verdict(go=block < stop)):
        for part in task.parts:
            taken.setdefault(part.block, []).append(part.step)
        if task.kind is Kind.DECODE:
            assert taken[task.block] == [0, 1, 2]
            decoded.append(task.block)
    assert decoded == list(range(stop)) and set(map(tuple, taken.values())) == {(0, 1, 2)}


def test_a_new_prompt_holds_from_its_block_on() -> None:
    one, two = (alone_made(Walk(StreamBatch(WINDOW, 3), 14, cues=cues)) for cues in ((0,), CUES))
    before, after = (distance(one[:, :, cut], two[:, :, cut]) for cut in (slice(6), slice(6, 8)))
    assert before < TOLERANCE and after > 100 * TOLERANCE


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(UserError, match="apart must be at least 1, got 0"):
        StreamBatch(WINDOW, 3, apart=0)
    with pytest.raises(UserError, match=r"window of 6 latent frames can't hold the 8 .* to 8"):
        Walk(StreamBatch(WINDOW, 3, together=4)).schedule()
    walk = Walk(StreamBatch(WINDOW, 3), steps=2)
    with pytest.raises(ValueError, match="3 rows for 2 steps"):
        list(Schedule.__iter__(walk.schedule()))
