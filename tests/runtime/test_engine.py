"""The engine: from a request to exactly its frames, whatever stops, fails or was there before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from time import monotonic
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longtake.runtime.engine import Engine, Outcome
from longtake.runtime.model import Model
from longtake.runtime.noise import SeededNoise
from longtake.runtime.progress import Progress
from longtake.runtime.samplers import FewStep, Solver
from longtake.runtime.wan_vae import DecodeStream
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.timeline import MAIN, Action, Record, forget

CPU = torch.device("cpu")
CAUSAL = Causal(Retention(9, 3, Positions.RELATIVE))
LANES = {"decode", "write"}


@dataclass
class Frames:
    """A sink that keeps frames, or fails at one of them."""

    fail_at: int | None = None
    error: Exception = field(default_factory=lambda: UserError("the disk is full"))
    pieces: list[np.ndarray] = field(default_factory=list)

    def write(self, frames: np.ndarray) -> None:
        if self.fail_at is not None and self.count + len(frames) > self.fail_at:
            raise self.error
        self.pieces.append(frames)

    @property
    def count(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    @property
    def all(self) -> np.ndarray:
        return np.concatenate(self.pieces)


@dataclass
class Blocks:
    """A store that keeps every block it is given."""

    held: dict[int, Tensor] = field(default_factory=dict)

    def read(self, block: int) -> Tensor | None:
        return self.held.get(block)

    def write(self, block: int, latents: Tensor) -> None:
        self.held[block] = latents.clone()


@dataclass
class Made:
    """An engine and all that it is connected to."""

    engine: Engine
    schedule: Schedule
    frames: Frames
    blocks: Blocks
    progress: list[Progress]

    def run(self) -> Outcome:
        return self.engine.run()


Make = Callable[..., Made]


@pytest.fixture
def make(tiny_model: Model) -> Make:
    """Make engines of the tiny model."""

    def make(
        seconds: float | None = 2.0,
        strategy: Any = CAUSAL,
        sampler: Any = None,
        frames: Frames | None = None,
        held: dict[int, Tensor] | None = None,
        model: Model = tiny_model,
        record: Record = forget,
        **changes: Any,
    ) -> Made:
        arguments: dict[str, Any] = {"cues": (Cue(0, "a red circle"),), "seed": 3}
        request = Request(**arguments | changes, seconds=seconds, height=32, width=32, fps=16)
        sampler = sampler or FewStep((1000.0, 500.0), 5.0)
        schedule = Schedule(strategy, request, model.spec, len(sampler.timesteps))
        frames, blocks, progress = frames or Frames(), Blocks(dict(held or {})), list[Progress]()
        noise = SeededNoise(request.seed)
        engine = Engine(
            model, schedule, sampler, noise, frames, blocks, progress.append, record=record
        )
        return Made(engine, schedule, frames, blocks, progress)

    return make


def lanes_alive() -> set[str]:
    return LANES & {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("strategy", [CAUSAL, Bidirectional()], ids=["causal", "joint"])
@pytest.mark.parametrize("frames", [1, 2, 9, 33, 34])
def test_a_request_gets_exactly_its_frames(
    make: Make, tiny_model: Model, strategy: Any, frames: int
) -> None:
    """Trimmed to the request, in order, and the very pixels of the finished latents."""
    made = make(frames / 16, strategy)
    outcome = made.run()
    assert (outcome.finished, outcome.frames) == (True, frames)
    latents = torch.cat([made.blocks.held[b] for b in sorted(made.blocks.held)], dim=2)
    with torch.inference_mode():
        pixels = DecodeStream(tiny_model.vae).decode(latents)[0]
    expected = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)[:frames].numpy()
    assert made.frames.all.dtype == np.uint8
    assert np.array_equal(made.frames.all, expected)
    assert not lanes_alive()


def test_the_outcome_counts_what_was_done(make: Make) -> None:
    outcome = make(2.0).run()
    assert (outcome.blocks_made, outcome.blocks_restored) == (3, 0)
    assert outcome.evaluations == 3 * (2 + 1)
    counts = {name: entry["count"] for name, entry in outcome.timeline.summary().items()}
    assert counts == {"encode": 1, "denoise": 6, "commit": 3, "decode": 3, "write": 3}
    assert make(2.0, Bidirectional()).run().evaluations == 2


def test_a_trace_tells_every_task_and_the_lanes_beside(make: Make) -> None:
    actions: list[Action] = []
    walked: list[float] = []

    @contextmanager
    def walk() -> Iterator[None]:
        walked.append(monotonic())
        yield
        walked.append(monotonic())

    plain, traced = make(2.0), make(2.0, record=actions.append)
    plain.run()
    traced.engine.run(walk())
    assert np.array_equal(traced.frames.all, plain.frames.all)
    lanes = {lane: [a for a in actions if a.lane == lane] for lane in (MAIN, "decode", "write")}
    assert [a.name for a in lanes[MAIN]] == [
        "encode of block 0",
        *(
            f"{task} of block {block}{step}"
            for block in range(3)
            for task, step in (("denoise", ", step 0"), ("denoise", ", step 1"), ("commit", ""))
        ),
    ]
    assert [a.name for a in lanes["decode"]] == [f"decode of block {block}" for block in range(3)]
    assert [a.name for a in lanes["write"]] == [f"write of {n} frames" for n in (9, 12, 11)]
    assert {(a.worker, a.activity) for a in actions} == {(0, "compute")}
    for lane in lanes.values():
        assert all(a.start <= a.stop for a in lane)
        assert all(a.stop <= b.start for a, b in pairwise(lane))
    begin, end = walked
    assert begin <= lanes[MAIN][0].start and lanes[MAIN][-1].stop <= end


def test_the_same_request_gives_the_same_frames(make: Make) -> None:
    first, second, other = make(), make(), make(seed=4)
    for made in (first, second, other):
        made.run()
    assert np.array_equal(first.frames.all, second.frames.all)
    assert not np.array_equal(first.frames.all, other.frames.all)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_restored_blocks_are_not_made_again(make: Make, kept: int) -> None:
    whole = make(2.0)
    whole.run()
    resumed = make(2.0, held={block: whole.blocks.held[block] for block in range(kept)})
    outcome = resumed.run()
    assert (outcome.blocks_made, outcome.blocks_restored) == (3 - kept, kept)
    assert outcome.evaluations == kept + 3 * (3 - kept)
    for block, latents in whole.blocks.held.items():
        assert torch.equal(resumed.blocks.held[block], latents)
    assert np.array_equal(resumed.frames.all, whole.frames.all)


@pytest.mark.parametrize("fail_at", [0, 9, 60])
@pytest.mark.parametrize("strategy", [CAUSAL, Bidirectional()], ids=["causal", "joint"])
def test_an_error_of_the_sink_surfaces_as_itself(make: Make, strategy: Any, fail_at: int) -> None:
    """And nothing is written after it: a hole in the video would be worse than its end."""
    error = UserError("the disk is full")
    made = make(8.0, strategy, frames=Frames(fail_at, error))
    with pytest.raises(UserError) as caught:
        made.run()
    assert caught.value is error
    assert not lanes_alive()
    assert made.frames.count <= fail_at
    reference = make(8.0, strategy)
    reference.run()
    written = np.concatenate([np.empty((0, 32, 32, 3), np.uint8), *made.frames.pieces])
    assert np.array_equal(written, reference.frames.all[: len(written)])


def test_an_error_of_the_store_surfaces_as_itself(make: Make) -> None:
    made = make()

    def refuse(block: int, latents: Tensor) -> None:
        raise UserError("the journal is full")

    made.blocks.write = refuse  # type: ignore[method-assign]
    with pytest.raises(UserError, match="journal"):
        made.run()
    assert not lanes_alive()


def test_an_error_of_whoever_watches_surfaces_as_itself(make: Make, tiny_model: Model) -> None:
    made = make()

    def watch(progress: Progress) -> None:
        if progress.stage == "write":
            raise UserError("the pipe is closed")

    engine = Engine(
        tiny_model,
        made.schedule,
        FewStep((1000.0, 500.0), 5.0),
        SeededNoise(0),
        made.frames,
        on_progress=watch,
    )
    with pytest.raises(UserError, match="pipe"):
        engine.run()
    assert not lanes_alive()


@pytest.mark.parametrize("seconds", [None, 8.0])
def test_stopped_it_ends_with_the_block_at_work(make: Make, seconds: float | None) -> None:
    made = make(seconds)

    def stop_in_block_2(block: int, latents: Tensor) -> None:
        made.blocks.held[block] = latents
        if block == 2:
            made.engine.stop()

    made.blocks.write = stop_in_block_2  # type: ignore[method-assign]
    outcome = made.run()
    assert sorted(made.blocks.held) == [0, 1, 2]
    assert outcome.frames == made.frames.count == 33
    assert outcome.finished == (seconds is None)


def test_prompts_can_change_while_it_runs(make: Make) -> None:
    made, plain = make(4.0), make(4.0)

    def switch(block: int, latents: Tensor) -> None:
        made.blocks.held[block] = latents
        if block == 1:
            made.schedule.switch("a green square moves")

    made.blocks.write = switch  # type: ignore[method-assign]
    made.run()
    plain.run()
    same = [torch.equal(made.blocks.held[b], plain.blocks.held[b]) for b in made.blocks.held]
    assert same == [True, True, False, False, False, False]
    replayed = make(4.0)
    replayed.schedule.switch("a green square moves", block=2)
    replayed.run()
    assert np.array_equal(replayed.frames.all, made.frames.all)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_26_engines_side_by_side_do_not_disturb_each_other(make: Make, guidance: float) -> None:
    alone = [make(2.0, seed=seed, guidance=guidance) for seed in (1, 2)]
    beside = [make(2.0, seed=seed, guidance=guidance) for seed in (1, 2)]
    for made in alone:
        made.run()
    threads = [threading.Thread(target=made.run) for made in beside]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, beside, strict=True):
        assert np.array_equal(one.frames.all, other.frames.all)


@pytest.mark.parametrize("positions", [Positions.RELATIVE, Positions.SINK_REBASED])
def test_a_run_goes_on_beyond_the_rotary_table(
    make: Make, tiny_model: Model, positions: Positions
) -> None:
    short = replace(tiny_model, spec=replace(tiny_model.spec, rotary_rows=16))
    frames = short.spec.pixel_frames(24)
    made = make(frames / 16, Causal(Retention(9, 3, positions)), model=short)
    assert made.run().frames == frames
    with pytest.raises(UserError, match=r"^24 latent frames can't be placed at absolute positions"):
        make(frames / 16, Causal(Retention(9, 3, Positions.ABSOLUTE)), model=short)


@pytest.mark.parametrize("kept", [0, 3])
def test_progress_comes_to_its_end(make: Make, kept: int) -> None:
    whole = make(4.0)
    whole.run()
    made = make(4.0, held={block: whole.blocks.held[block] for block in range(kept)})
    made.run()
    frames = [progress.frames for progress in made.progress]
    assert all(a <= b for a, b in pairwise(frames))
    assert frames[-1] == made.progress[-1].total_frames == 64
    assert {progress.blocks for progress in made.progress} == {6}
    assert sorted({progress.block for progress in made.progress}) == list(range(6))
    assert made.progress[-1].seconds_left == 0
    known = [p for p in made.progress if p.seconds_left is not None]
    assert known[0].block == 0
    assert all((p.seconds_left or 0) > 0 for p in known if p.frames < 64)


def test_a_stream_tells_no_end(make: Make) -> None:
    made = make(None)

    def stop(block: int, latents: Tensor) -> None:
        made.engine.stop()

    made.blocks.write = stop  # type: ignore[method-assign]
    made.run()
    assert {(p.blocks, p.total_frames, p.seconds_left) for p in made.progress} == {(None,) * 3}


def test_a_solver_runs_jointly_and_by_block(make: Make) -> None:
    solver = Solver("FlowMatchEulerDiscreteScheduler", 3, {"shift": 3.0}, CPU)
    for strategy, evaluations in ((CAUSAL, 3 * 4), (Bidirectional(), 3)):
        assert make(2.0, strategy, solver).run().evaluations == evaluations
