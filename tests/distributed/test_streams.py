"""Streams that share launches: each as alone, on workers too, whoever joins and leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from tests.distributed.test_stream import CUES, WINDOW, video
from tests.distributed.walks import (
    CPU,
    TEXT_TOKENS,
    TEXT_WIDTH,
    TOLERANCE,
    Blocks,
    Walk,
    distance,
    encode,
    take,
    transformer,
)

from longtake.parallel.mesh import Mesh, Rendezvous, alone, open_mesh
from longtake.runtime.noise import SeededNoise
from longtake.runtime.source import NoiseSource, Source
from longtake.runtime.streams import StreamsMember
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Verdict
from longtake.scheduler.strategies.stream import StreamBatch
from longtake.scheduler.streams import Batch, Join, Seated, Turn
from longtake.scheduler.task import STREAM, Kind, Task

STEPS = 3
WALK = Walk(StreamBatch(WINDOW, STEPS), 14)
VIDEO = 3  # the number of the stream that is made from a video


def request(number: int, walk: Walk = WALK) -> Request:
    """What a stream asks for: another seed, length and prompts for each."""
    frames, cues = {0: (14, CUES), 1: (10, (0,)), 2: (18, (0, 8)), VIDEO: (14, (0,))}[number]
    asked = replace(walk, frames=frames, cues=cues).schedule().request
    return replace(asked, seed=number)


@dataclass
class Script:
    """A conductor by the book: who comes at which turn, and who is left out of which."""

    joins: dict[int, list[Join]]
    rests: dict[int, set[int]] = field(default_factory=dict)
    stops: dict[int, int] = field(default_factory=dict)  # by number: blocks after which it ends
    seats: dict[int, Seated] = field(default_factory=dict)
    at: int = -1

    def turn(self, tick: int) -> Turn:
        self.at = tick
        joins = tuple(self.joins.get(tick, ()))
        here = sorted({*self.seats, *(join.seat for join in joins)})
        takes = tuple(seat for seat in here if seat not in self.rests.get(tick, ()))
        return Turn(joins, takes, over=not here and tick > max(self.joins))

    def begin(self, stream: Seated) -> Callable[[int], Verdict]:
        self.seats[stream.joined.seat] = stream
        stop = self.stops.get(stream.joined.number, 100)
        return lambda block: Verdict(go=block < stop)

    def left(self, stream: Seated) -> None:
        del self.seats[stream.joined.seat]


def script() -> Script:
    """Two begin together, one of them rests; when one has left, another takes its seat."""
    joins = {0: [Join(0, 0, request(0)), Join(1, 1, request(1))], 10: [Join(2, 1, request(2))]}
    return Script(joins, rests={2: {1}, 4: {0}, 5: {0}})


def source_of(number: int, mesh: Mesh) -> Source:
    return video(mesh) if number == VIDEO else NoiseSource(SeededNoise(number))


def take_streams(
    rendezvous: Rendezvous | None, degrees: Degrees, book: Script, walk: Walk = WALK, seats: int = 2
) -> dict[int, torch.Tensor]:
    """What each stream's blocks are, on rank 0."""
    torch.set_num_threads(1)
    mesh = alone(CPU) if rendezvous is None else open_mesh(rendezvous, degrees, CPU)
    first = mesh.rank == 0
    pattern = walk.schedule()
    batch = Batch(walk.strategy, pattern.request, pattern.spec, walk.steps, seats)
    numbers = [join.number for joins in book.joins.values() for join in joins]
    stores = {number: Blocks() for number in numbers}
    here = alone(CPU)
    with mesh:
        StreamsMember(
            transformer(walk.layers),
            batch,
            walk.make_sampler(),
            lambda request: SeededNoise(request.seed),
            mesh,
            (TEXT_TOKENS, TEXT_WIDTH),
            encode if first else None,
            {number: source_of(number, here) for number in numbers} if first else {},
            stores if first else {},
            book if first else None,
            state_every=0.0,  # a state is due at once, and is not kept
        ).run()
    return {number: store.latents for number, store in stores.items() if first}


def take_alone(number: int, walk: Walk = WALK) -> torch.Tensor:
    asked = request(number, walk)

    class Asked(Walk):
        def schedule(self) -> Any:
            schedule = super().schedule()
            return type(schedule)(self.strategy, asked, schedule.spec, self.steps)

    sources = {"source": video} if number == VIDEO else {}
    return take(Asked(**vars(walk)), noise=SeededNoise(number), **sources).latents


@pytest.mark.parametrize(
    ("degrees", "apart"),
    [
        (Degrees(), 1),
        (Degrees(), 2),
        (Degrees(clip=2), 1),
        (Degrees(stages=2), 2),
        (Degrees(clip=2, stages=2), 2),
    ],
    ids=str,
)
def test_26_streams_that_share_launches_are_as_alone(
    workers: Any, degrees: Degrees, apart: int
) -> None:
    walk = replace(WALK, strategy=StreamBatch(WINDOW, STEPS, apart=apart))
    book = script() if apart == 1 else Script({0: script().joins[0], 30: [Join(2, 1, request(2))]})
    if degrees.world == 1:
        made = take_streams(None, degrees, book, walk)
    else:
        made = workers.run(degrees.world, take_streams, degrees, book, walk, timeout=60)[0]
    assert sorted(made) == [0, 1, 2]
    for number, latents in made.items():
        true = take_alone(number, walk)
        assert distance(latents, true) < TOLERANCE
    assert made[0].shape[2] == 14 and distance(made[0][:, :, :10], made[1]) > 100 * TOLERANCE


def test_26_a_stream_from_a_video_and_one_from_noise_are_as_alone(workers: Any) -> None:
    book = Script({0: [Join(VIDEO, 1, request(VIDEO)), Join(1, 0, request(1))]})
    made = workers.run(2, take_streams, Degrees(clip=2), book, timeout=60)[0]
    for number in (1, VIDEO):
        assert distance(made[number], take_alone(number)) < TOLERANCE


def tasks(book: Script, seats: int = 2) -> tuple[Batch, list[Task]]:
    pattern = WALK.schedule()
    batch = Batch(StreamBatch(WINDOW, STEPS), pattern.request, pattern.spec, STEPS, seats)
    return batch, list(batch.tasks(book))


def test_a_block_is_of_who_made_it_though_another_came_and_went_since() -> None:
    """Stages may still be at work on it."""
    joins = {0: [Join(0, 0, request(0))], 30: [Join(1, 0, request(1))]}
    batch, made = tasks(Script(joins, stops={1: 0}))
    assert batch.of_block(made[-1].block).joined.number == 0


def test_what_streams_leave_in_the_cache_is_forgotten_before_the_seat_is_taken_again() -> None:
    batch, made = tasks(script())
    kept: set[tuple[int, int]] = set()
    most = 0
    for task in made:
        for row, frames in task.evicts:
            kept -= {(row, frame) for frame in frames.frames()}
        for part in task.parts:
            assert all(
                (s.row, f) in kept
                for s in part.sees
                if s.row is not None
                for f in s.frames.frames()
            )
        for part in task.parts:
            if part.writes is not None:
                kept |= {(part.writes, frame) for frame in part.kept.frames()}
        most = max(most, len(kept))
    assert most <= batch.strategy.cached_frames(batch.request, batch.spec)
    assert batch.seated == {}


def test_a_launch_has_the_streams_of_its_turn_and_all_blocks_are_decoded_once() -> None:
    _, made = tasks(script())
    seats = {t.tick: {p.block // STREAM for p in t.parts} for t in made if t.parts}
    assert seats[0] == seats[1] == seats[3] == {0, 1}
    assert seats[2] == {0} and seats[4] == seats[5] == {1}
    decoded = [task.block for task in made if task.kind is Kind.DECODE]
    assert len(decoded) == len(set(decoded)) == 7 + 5 + 9
    begun = {block for task in made if task.parts for block in task.finishes}
    assert begun == set(decoded)


def test_29_a_stream_that_is_ended_finishes_its_blocks_and_the_other_goes_on() -> None:
    book = script()
    book.stops = {1: 3}
    _, made = tasks(book)
    decoded = [task.block for task in made if task.kind is Kind.DECODE]
    assert [block for block in decoded if STREAM <= block < STREAM + 3] == [
        STREAM + i for i in range(3)
    ]
    assert [block for block in decoded if block < STREAM] == list(range(7))


def test_prompts_are_forgotten_by_stream() -> None:
    from longtake.runtime.prompts import Prompts

    prompts = Prompts(transformer())
    for cue in (0, 1, STREAM, STREAM + 1, 2 * STREAM):
        prompts.add(cue, torch.zeros(1, TEXT_TOKENS, TEXT_WIDTH))
    prompts.forget([1, STREAM])
    assert sorted(prompts._embeddings) == [1, STREAM, STREAM + 1, 2 * STREAM]


def test_what_cannot_share_launches_is_refused() -> None:
    pattern = WALK.schedule()
    with pytest.raises(UserError, match="at least 1 seat, got 0"):
        Batch(StreamBatch(WINDOW, 3), pattern.request, pattern.spec, 3, 0)
    with pytest.raises(UserError, match=r"can't renew their sinks; set strategy.likeness to -1"):
        Batch(StreamBatch(WINDOW, 3, likeness=0.2), pattern.request, pattern.spec, 3, 2)
    batch = Batch(StreamBatch(WINDOW, 3), pattern.request, pattern.spec, 3, 2)
    with pytest.raises(UserError, match="have one guidance: 1 here, got 3"):
        batch.check(replace(pattern.request, guidance=3.0))
