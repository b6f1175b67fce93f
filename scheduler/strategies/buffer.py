"""A moving buffer of blocks at rising noise levels, all of which see each other; nothing is cached.

StreamDiT (arXiv 2507.03745), and FIFO-Diffusion (arXiv 2405.11473) before it, with blocks for its
frames. Every tick moves the whole buffer to the next levels in one launch; the foremost block
leaves clean and one of pure noise enters behind. Positions are counted in the buffer, so a video
may have any length. StreamDiT's reference frames are the last `references` blocks that left: they
stay in front of the buffer, clean, and are evaluated with it. (Its attention in shifted windows
belongs to its own model; here all tokens see each other.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Script
from longtake.scheduler.strategies.cascade import Flight
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.strategies.staircase import Prompts, Staircase
from longtake.scheduler.task import Kind, Part, Seen, Span, Task


@dataclass(frozen=True)
class Buffer:
    """See the module; `in_flight` blocks are in the making, `references` stand before them."""

    in_flight: int = 8
    references: int = 0
    prompts: Prompts = "newest"
    label: str = "lossy"

    def __post_init__(self) -> None:
        self._staircase()
        if self.references < 0:
            raise UserError(f"references must be at least 0 blocks, got {self.references}")

    def _staircase(self) -> Staircase:
        return Staircase(self.in_flight, self.prompts, commits=False)

    def _causal(self, spec: ModelSpec) -> Causal:
        """What makes blocks of a video, and sees as many frames."""
        whole = (self.in_flight + self.references) * spec.block_frames
        return Causal(Retention(whole, positions=Positions.RELATIVE, recache=False))

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """As of causal generation."""
        return self._causal(spec).blocks(request, spec)

    def check(self, request: Request, spec: ModelSpec) -> None:
        """As of causal generation, with the buffer as its window."""
        self._causal(spec).check(request, spec)

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """The buffer, or a video that is shorter."""
        return self.clips(request, spec) * spec.block_frames

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """None: everything that is seen is in the launch."""
        return 0

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """A block for each worker."""
        whole, blocks = self.in_flight + self.references, self.blocks(request, spec)
        return whole if blocks is None else min(whole, blocks)

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Write a launch for each tick, and the decode of every block that it finishes."""

        def launch(tick: int, flying: list[Flight]) -> Task:
            return self._launch(tick, flying, steps)

        blocks = self.blocks(request, spec)
        return self._staircase().tasks(blocks, spec, steps, script, launch)

    def _launch(self, tick: int, flying: list[Flight], steps: int) -> Task:
        front = flying[0]
        size, first = len(front.frames), max(0, front.block - self.references)
        whole = [
            Flight(block, Span(block * size, (block + 1) * size), front.cue, steps)
            for block in range(first, front.block)
        ]
        whole += flying
        start = first * size
        parts = [
            Part(
                flight.block,
                flight.frames,
                None if flight.step == steps else flight.step,
                flight.cue,
                flight.frames.start - start,
                tuple(
                    Seen(other.frames, other.frames.start - start)
                    for other in whole
                    if other is not flight
                ),
                last=flight.step == steps - 1,
                idle=flight.step == steps,
            )
            for flight in whole
        ]
        over = front.step == steps - 1 and front.block >= self.references
        return Task(
            tick,
            Kind.DENOISE,
            front.block,
            front.frames,
            front.cue,
            parts=tuple(parts),
            drops=(front.block - self.references,) if over else (),
        )
