"""All frames jointly, as Wan 2.1 was trained: one block that is the whole video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Script
from longtake.scheduler.task import Kind, Span, Task


@dataclass(frozen=True)
class Bidirectional:
    """One forward over all frames a step; the reference that other strategies approximate."""

    label: str = "exact"

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """Always one."""
        return 1

    def seams(self, frames: int) -> list[int]:
        """None."""
        return []

    def check(self, request: Request, spec: ModelSpec) -> None:
        """Refuse endless videos, timelines, and more frames than the model has positions for."""
        spec.grid(request.height, request.width)
        if request.seconds is None:
            raise UserError("the bidirectional strategy can't stream; use causal")
        if len(request.cues) > 1:
            raise UserError(
                "the bidirectional strategy takes one prompt; for a timeline use causal, or clip, "
                "whose frames all see each other with strategy.halo=null"
            )
        frames = spec.latent_frames(request.pixel_frames)
        if frames > spec.rotary_rows:
            longest = spec.pixel_frames(spec.rotary_rows) / request.fps
            raise UserError(
                f"{request.seconds:g} s is {frames} latent frames, but the model's rotary table "
                f"has {spec.rotary_rows} rows; the bidirectional strategy reaches {longest:.0f} s, "
                "causal goes on"
            )

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """All frames."""
        return spec.latent_frames(request.pixel_frames)

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """None."""
        return 0

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """The video is not shared out by frames."""
        return 1

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Write the steps of the one block, then its decode."""
        ticks = count()
        frames = Span(0, spec.latent_frames(request.pixel_frames))
        cue = script.begin(0)
        if cue is None:
            return
        yield Task(next(ticks), Kind.ENCODE, 0, frames, cue)
        for step in range(steps):
            yield Task(next(ticks), Kind.DENOISE, 0, frames, cue, step, last=step == steps - 1)
        yield Task(next(ticks), Kind.DECODE, 0, frames, cue)
