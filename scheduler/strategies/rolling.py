"""A window of blocks at falling noise levels that rolls over the video and sees itself both ways.

Rolling Forcing (arXiv 2509.25161). Every tick moves all blocks of the window to their next level in
one launch; the foremost one is finished and the next one enters, so each block is denoised while it
sees those behind it as well. Before the window they see the clean frames right before it, and the
sink, which stands right before those whatever the length of the video: with the window that is
`retention.window` frames at most. A finished block is evaluated once more, cleanly, for the cache;
it sees the clean frames before it alone and the sink only as one of them.

The released code commits in a launch of its own, and in every window, though only the keys of
finished blocks are ever read. Here the clean evaluation is part of the next window's launch, which
sees it live: the same sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.retention import Retention
from longtake.scheduler.schedule import Script
from longtake.scheduler.strategies.cascade import Flight
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.strategies.staircase import Prompts, Staircase
from longtake.scheduler.task import Kind, Part, Seen, Span, Task

CLEAN = 0  # the cache's one row


@dataclass(frozen=True)
class Rolling:
    """See the module; `retention.window` counts sink, past and all blocks in flight."""

    retention: Retention
    in_flight: int = 5
    prompts: Prompts = "own"
    label: str = "lossy"

    def __post_init__(self) -> None:
        self._staircase()

    def _staircase(self) -> Staircase:
        return Staircase(self.in_flight, self.prompts, commits=True)

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """As of causal generation."""
        return Causal(self.retention).blocks(request, spec)

    def check(self, request: Request, spec: ModelSpec) -> None:
        """As of causal generation; and the sink and all blocks in flight must fit the window."""
        Causal(self.retention).check(request, spec)
        most = self._most(request, spec, self.in_flight)
        least = self.retention.sink + most * spec.block_frames
        if self.retention.window is not None and self.retention.window < least:
            raise UserError(
                f"a window of {self.retention.window} latent frames can't hold "
                f"{self.retention.sink} sink frames and {most} blocks in flight of "
                f"{spec.block_frames}; the least is {least}, or set strategy.in_flight lower"
            )

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """All blocks in flight, and the one that is committed."""
        return self._most(request, spec, self.in_flight + 1) * spec.block_frames

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """A window, which a block that is committed sees, and the sink; or the whole video."""
        total = Causal(self.retention).latent_frames(request, spec)
        if self.retention.window is None:
            return self.retention.capacity(total)
        kept = self.retention.window + self.retention.sink
        return kept if total is None else min(kept, total)

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """A block for each worker."""
        return self._most(request, spec, self.in_flight + 1)

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Write a launch for each tick, and the decode of every block that it finishes."""
        cached: list[int] = []

        def launch(tick: int, flying: list[Flight]) -> Task:
            return self._launch(tick, flying, steps, cached)

        blocks = self.blocks(request, spec)
        return self._staircase().tasks(blocks, spec, steps, script, launch)

    def _most(self, request: Request, spec: ModelSpec, blocks: int) -> int:
        there = self.blocks(request, spec)
        return blocks if there is None else min(blocks, there)

    def _launch(self, tick: int, flying: list[Flight], steps: int, cached: list[int]) -> Task:
        front = flying[0]
        gone = [frame for frame in cached if not self._needed(frame, front.frames)]
        clean = [flight for flight in flying if flight.step == steps]
        noisy = [flight for flight in flying if flight.step < steps]
        parts = [self._commit(flight) for flight in clean] + self._window(noisy, clean, steps)
        cached[:] = [frame for frame in cached if frame not in gone]
        cached += [frame for flight in clean for frame in flight.frames.frames()]
        return Task(
            tick,
            Kind.DENOISE if noisy else Kind.COMMIT,
            front.block,
            front.frames,
            front.cue,
            parts=tuple(parts),
            evicts=tuple((CLEAN, Span(frame, frame + 1)) for frame in gone),
            drops=tuple(flight.block for flight in clean),
        )

    def _needed(self, frame: int, front: Span) -> bool:
        """Whether a cached frame is seen from the block `front` on: by its commit, or as sink."""
        window, sink = self.retention.window, self.retention.sink
        return window is None or frame < sink or frame >= front.stop - window

    def _commit(self, flight: Flight) -> Part:
        """The clean evaluation of a finished block."""
        frames = flight.frames
        plain = replace(self.retention, sink=0)
        context = plain.context(frames)
        place = plain.place(context, frames)
        sees = tuple(Seen(span, place[span.start], CLEAN) for span in context)
        at = place[frames.start]
        return Part(flight.block, frames, None, flight.cue, at, sees, writes=CLEAN)

    def _window(self, noisy: list[Flight], clean: list[Flight], steps: int) -> list[Part]:
        """The parts of all blocks of the window, which see the past, each other, and `clean`."""
        if not noisy:
            return []
        whole = Span(noisy[0].frames.start, noisy[-1].frames.stop)
        context = self.retention.context(whole)
        place = self.retention.place(context, whole)
        committed = (clean or noisy)[0].frames.start
        past = []
        for span in context:
            kept = Span(span.start, min(span.stop, committed))
            if kept.start < kept.stop:
                past.append(Seen(kept, place[kept.start], CLEAN))
            live = Span(max(span.start, committed), span.stop)
            if live.start < live.stop:
                past.append(Seen(live, place[live.start]))
        return [
            Part(
                flight.block,
                flight.frames,
                flight.step,
                flight.cue,
                place[flight.frames.start],
                (*past, *self._others(flight, noisy, place)),
                last=flight.step == steps - 1,
            )
            for flight in noisy
        ]

    @staticmethod
    def _others(flight: Flight, noisy: list[Flight], place: dict[int, int]) -> list[Seen]:
        return [
            Seen(other.frames, place[other.frames.start]) for other in noisy if other is not flight
        ]
