"""Chunks that enter at a steady pace, several in the making, each seeing further back the noisier
it is.

MAGI-1 (arXiv 2505.13211, and its released code). The steps are cut into as many stages as there are
`ranges`; a chunk, which is a block here, enters a stage after the one before it, so as many are in
flight as there are stages, and one finishes each time that one enters. All of them are evaluated in
one launch, block-causally: a chunk sees those before it, finished ones clean and from the cache,
others live and as noisy as they are. `ranges[stage]` says how many chunks it sees in that stage,
itself included: with 5, 4, 3, 2 all that are in flight before it, and one that is finished.

A finished chunk is evaluated once more, cleanly, beside the first launch after it; only those keys
are kept. That evaluation sees nothing but the chunk and runs under the empty prompt, unless
`clean_range` and `clean_text` say otherwise. What nothing follows is not evaluated again, so n
chunks take (n + stages - 1) * steps / stages launches in all.

With one range over everything, and clean evaluations that see everything under the prompt, this is
causal generation, to rounding: a clean evaluation is part of a launch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Literal

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Script
from longtake.scheduler.strategies.cascade import CLEAN, Flight
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import NO_PROMPT, Kind, Part, Seen, Span, Task


@dataclass(frozen=True)
class Chunks:
    """See the module.

    Attributes:
        ranges: how many chunks are seen in each stage, the noisiest first; None: all.
        sink: chunks at the start that are always seen; ranges count them.
        positions: at which temporal positions what is seen stands.
        clean_range: how many chunks a clean evaluation sees, itself included; None: all.
        clean_text: what a clean evaluation runs under.
    """

    ranges: tuple[int | None, ...] = (5, 4, 3, 2)
    sink: int = 0
    positions: Positions = Positions.ABSOLUTE
    clean_range: int | None = 1
    clean_text: Literal["empty", "prompt"] = "empty"
    label: str = "lossy"

    def __post_init__(self) -> None:
        if not self.ranges:
            raise UserError("ranges must have a number of chunks for each stage, got none")
        if self.sink < 0:
            raise UserError(f"sink must be at least 0 chunks, got {self.sink}")
        for chunks in self.ranges:
            if chunks is not None and chunks <= self.sink:
                raise UserError(
                    f"a range counts the chunk itself and {self.sink} of the sink, so it must be "
                    f"at least {self.sink + 1}, got {chunks}"
                )
        if self.clean_range is not None and self.clean_range < 1:
            raise UserError(f"clean_range counts the chunk itself, got {self.clean_range}")
        if self.clean_text not in ("empty", "prompt"):
            raise UserError(f"clean_text is empty or prompt, not {self.clean_text!r}")

    @property
    def stages(self) -> int:
        """How many chunks are in flight."""
        return len(self.ranges)

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """As of causal generation."""
        return Causal(Retention()).blocks(request, spec)

    def check(self, request: Request, spec: ModelSpec) -> None:
        """As of causal generation, for the window of every stage."""
        for view in self._views(spec):
            Causal(view).check(request, spec)

    def check_steps(self, steps: int) -> None:
        """Refuse steps that can't be cut into stages."""
        if steps % self.stages:
            legal = ", ".join(str(d) for d in range(1, steps + 1) if steps % d == 0)
            raise UserError(
                f"{steps} steps can't be cut into {self.stages} stages of the same length, one for "
                f"each of strategy.ranges; legal are {legal}"
            )

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """All chunks in flight, and the one that has just finished."""
        return (self.stages + 1) * spec.block_frames

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """What the stages see beyond those in flight; or the whole video."""
        blocks = self.blocks(request, spec)
        if blocks is None or None not in (*self.ranges, self.clean_range):
            seen = [chunks for chunks in (*self.ranges, self.clean_range) if chunks is not None]
            done = self._flight(self.sink + max(seen) + 1, spec)  # far enough from the start
            flying = [self._flight(done.block + 1 + i, spec) for i in range(self.stages + 1)]
            for age, flight in enumerate(reversed(flying)):
                flight.step = max(0, age - 1)
            done.step = self.stages
            needed = self._needed([done, *flying], 1, spec) | set(done.frames.frames())
            kept = sum(frame < done.frames.stop for frame in needed)
            return kept if blocks is None else min(kept, blocks * spec.block_frames)
        return blocks * spec.block_frames

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """A chunk in flight for each worker."""
        return self.stages

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Write a launch for each tick, and the decode of every chunk that it finishes."""
        ticks, blocks, every = count(), self.blocks(request, spec), steps // self.stages
        flying: list[Flight] = []  # the first may be clean
        cached: list[int] = []
        begun, cue = 0, None
        while True:
            if begun != blocks and (not flying or flying[-1].step >= every):
                previous, cue = cue, script.begin(begun)
                if cue is None:
                    blocks = begun
                else:
                    flight = self._flight(begun, spec, cue)
                    if cue != previous:
                        yield Task(next(ticks), Kind.ENCODE, begun, flight.frames, cue)
                    if begun == 0 and self.clean_text == "empty":
                        yield Task(next(ticks), Kind.ENCODE, 0, flight.frames, NO_PROMPT)
                    flying.append(flight)
                    begun += 1
            if all(flight.step == steps for flight in flying):
                return
            to_come = [] if begun == blocks else [self._flight(begun, spec)]
            needed = self._needed([*flying, *to_come], every, spec)
            yield self._launch(next(ticks), flying, steps, cached, needed, spec)
            flying = [flight for flight in flying if flight.step < steps]
            for flight in flying:
                flight.step += 1
                if flight.step == steps:
                    yield Task(next(ticks), Kind.DECODE, flight.block, flight.frames, flight.cue)

    def _flight(self, block: int, spec: ModelSpec, cue: int = 0) -> Flight:
        return Flight(block, Span(block * spec.block_frames, (block + 1) * spec.block_frames), cue)

    def _views(self, spec: ModelSpec) -> list[Retention]:
        """The window in each stage; the last is that of clean evaluations."""
        return [
            Retention(
                None if chunks is None else chunks * spec.block_frames,
                sink * spec.block_frames,
                self.positions,
                recache=False,
            )
            for chunks, sink in [*((r, self.sink) for r in self.ranges), (self.clean_range, 0)]
        ]

    def _needed(self, flying: Sequence[Flight], every: int, spec: ModelSpec) -> set[int]:
        """The frames that these still see or will see."""
        *views, clean = self._views(spec)
        needed: set[int] = set()
        for flight in flying:
            for view in (*views[flight.step // every :], clean):
                needed.update(*(span.frames() for span in view.context(flight.frames)))
        return needed

    def _launch(
        self,
        tick: int,
        flying: Sequence[Flight],
        steps: int,
        cached: list[int],
        needed: set[int],
        spec: ModelSpec,
    ) -> Task:
        gone = [frame for frame in cached if frame not in needed]
        cached[:] = [frame for frame in cached if frame in needed]
        parts = tuple(self._part(flight, flying, steps, spec) for flight in flying)
        cached += [f for part in parts if part.writes is not None for f in part.frames.frames()]
        front = flying[0]
        return Task(
            tick,
            Kind.DENOISE,
            front.block,
            front.frames,
            front.cue,
            parts=parts,
            evicts=tuple((CLEAN, Span(frame, frame + 1)) for frame in gone),
            drops=tuple(part.block for part in parts if part.step is None),
        )

    def _part(self, flight: Flight, flying: Sequence[Flight], steps: int, spec: ModelSpec) -> Part:
        done = flight.step == steps
        view = self._views(spec)[flight.step * self.stages // steps]
        context = view.context(flight.frames)
        place = view.place(context, flight.frames)
        seen = [frame for span in context for frame in span.frames()]
        live = {f: other.block for other in flying for f in other.frames.frames()}
        return Part(
            flight.block,
            flight.frames,
            None if done else flight.step,
            NO_PROMPT if done and self.clean_text == "empty" else flight.cue,
            place[flight.frames.start],
            tuple(sightings(seen, place, live)),
            writes=CLEAN if done else None,
            last=flight.step == steps - 1,
        )


def sightings(frames: Sequence[int], place: dict[int, int], live: dict[int, int]) -> Iterator[Seen]:
    """Runs of frames that are seen: those `live`, by their block, and others from the cache."""
    numbered = enumerate(frames)
    for (_, block), run in groupby(numbered, key=lambda at: (at[1] - at[0], live.get(at[1]))):
        seen = [frame for _, frame in run]
        row = CLEAN if block is None else None
        yield Seen(Span(seen[0], seen[-1] + 1), place[seen[0]], row)
