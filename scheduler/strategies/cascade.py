"""Blocks that start before the one in front is done, and see it as it is.

Block Cascading (arXiv 2511.20426) publishes no code and only its figures say how; this is the
schedule that follows from them. Block b + 1 starts once block b has taken `lead` steps; at most
`in_flight` blocks are in the making, and all of them are evaluated in one launch, each at its own
level. They see the clean past from the cache, and each other live: those before them, or with
`sees: both` those after them too. A finished block is evaluated once more, cleanly and over the
clean past alone, for the cache; that too is part of the launch of the others. A switch of prompt
holds for the blocks that start after it, and rewrites nothing.

With one block in flight this is causal generation, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.retention import Retention
from longtake.scheduler.schedule import Script
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind, Part, Seen, Span, Task

CLEAN = 0  # the cache's one row


@dataclass
class Flight:
    """A block in the making: how many steps it has taken; after the last it is clean."""

    block: int
    frames: Span
    cue: int
    step: int = 0


@dataclass(frozen=True)
class Cascade:
    """See the module; `retention` is the window over the past, in-flight blocks included."""

    retention: Retention
    in_flight: int = 2
    lead: int = 1
    sees: Literal["past", "both"] = "past"
    label: str = "lossy"

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise UserError(f"at least 1 block is in flight, got {self.in_flight}")
        if self.lead < 1:
            raise UserError(f"a block takes at least 1 step before the next, got {self.lead}")
        if self.sees not in ("past", "both"):
            raise UserError(f"blocks see the past or both sides, not {self.sees!r}")

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """As of causal generation."""
        return Causal(self.retention).blocks(request, spec)

    def check(self, request: Request, spec: ModelSpec) -> None:
        """As of causal generation."""
        Causal(self.retention).check(request, spec)

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """All blocks in flight."""
        return self.in_flight * spec.block_frames

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """The window, or the whole video."""
        return Causal(self.retention).cached_frames(request, spec)

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """A block for each worker."""
        return self.in_flight

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Write a launch for each tick, and the decode of every block that it finishes."""
        ticks, blocks = count(), self.blocks(request, spec)
        flying: list[Flight] = []
        cached: list[int] = []
        begun, cue = 0, None
        while True:
            ready = not flying or flying[-1].step >= self.lead
            if ready and len(flying) < self.in_flight and begun != blocks:
                previous, cue = cue, script.begin(begun)
                if cue is None:
                    blocks = begun
                else:
                    frames = Span(begun * spec.block_frames, (begun + 1) * spec.block_frames)
                    if cue != previous:
                        yield Task(next(ticks), Kind.ENCODE, begun, frames, cue)
                    flying.append(Flight(begun, frames, cue))
                    begun += 1
            if not flying:
                return
            yield self._launch(next(ticks), flying, steps, cached)
            for flight in flying:
                flight.step += 1
                if flight.step == steps:
                    yield Task(next(ticks), Kind.DECODE, flight.block, flight.frames, flight.cue)
            flying = [flight for flight in flying if flight.step <= steps]

    def _launch(self, tick: int, flying: list[Flight], steps: int, cached: list[int]) -> Task:
        kept = {f for span in self.retention.context(flying[0].frames) for f in span.frames()}
        gone = [frame for frame in cached if frame not in kept]
        cached[:] = [frame for frame in cached if frame in kept]
        parts = tuple(self._part(flight, flying, steps) for flight in flying)
        cached += [f for part in parts if part.writes is not None for f in part.frames.frames()]
        front = flying[0]
        return Task(
            tick,
            Kind.DENOISE if any(part.step is not None for part in parts) else Kind.COMMIT,
            front.block,
            front.frames,
            front.cue,
            parts=parts,
            evicts=tuple((CLEAN, Span(frame, frame + 1)) for frame in gone),
            drops=tuple(part.block for part in parts if part.step is None),
        )

    def _part(self, flight: Flight, flying: list[Flight], steps: int) -> Part:
        context = self.retention.context(flight.frames)
        place = self.retention.place(context, flight.frames)
        at = place[flight.frames.start]
        sees = []
        for span in context:
            clean = Span(span.start, min(span.stop, flying[0].frames.start))
            if clean.start < clean.stop:
                sees.append(Seen(clean, place[clean.start], CLEAN))
            for other in flying:
                live = Span(max(span.start, other.frames.start), min(span.stop, other.frames.stop))
                if live.start < live.stop:
                    sees.append(Seen(live, place[live.start]))
        if self.sees == "both" and flight.step < steps:
            for other in flying:
                if other.block > flight.block:
                    there = at + other.frames.start - flight.frames.start
                    sees.append(Seen(other.frames, there))
        done = flight.step == steps
        return Part(
            flight.block,
            flight.frames,
            None if done else flight.step,
            flight.cue,
            at,
            tuple(sees),
            writes=CLEAN if done else None,
            last=flight.step == steps - 1,
        )
