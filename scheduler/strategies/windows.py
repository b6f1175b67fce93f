"""One video made in overlapping windows, whose flows are averaged where they overlap.

Gen-L-Video (arXiv 2305.18264): at every step each window is evaluated by itself, as a short video
of a length that the model knows; a frame moves by the mean of all windows that have it. The windows
begin every `stride` latent frames, and the last one is moved back so that it ends with the video.
A window runs under the prompt that holds in its middle, so where a prompt changes, windows under
both are averaged (as in TALC, arXiv 2405.04682, and DiTCtrl, arXiv 2412.18597).

A video that fits one window is joint generation, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Script
from longtake.scheduler.strategies.prompts import check_prompts
from longtake.scheduler.task import Kind, Part, Span, Task


@dataclass(frozen=True)
class Windows:
    """See the module; `length` and `stride` are in latent frames."""

    length: int = 12
    stride: int = 3
    label: str = "lossy"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError(f"a window has at least 1 latent frame, got {self.length}")
        if not 1 <= self.stride <= self.length:
            raise UserError(
                f"the stride of windows must be 1 .. {self.length}, their length, or frames "
                f"between them are made by none; got {self.stride}"
            )

    def cut(self, frames: int) -> list[Span]:
        """The windows over so many latent frames; the last ends with them."""
        if frames <= self.length:
            return [Span(0, frames)]
        starts = [*range(0, frames - self.length, self.stride), frames - self.length]
        return [Span(start, start + self.length) for start in starts]

    def seams(self, frames: int) -> list[int]:
        """The latent frames at which a window begins or has ended."""
        windows = self.cut(frames)
        return sorted({w.start for w in windows[1:]} | {w.stop for w in windows[:-1]})

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """One: the windows share their frames."""
        return 1

    def check(self, request: Request, spec: ModelSpec) -> None:
        """Refuse sizes the model can't tile, endless videos, windows for which the model has too
        few positions, and prompts that would never be seen."""
        spec.grid(request.height, request.width)
        if request.seconds is None:
            raise UserError("windows make all of a video at once, so they need --seconds")
        windows = self.cut(spec.latent_frames(request.pixel_frames))
        if len(windows[0]) > spec.rotary_rows:
            raise UserError(
                f"a window of {len(windows[0])} latent frames is longer than the model's rotary "
                f"table, which has {spec.rotary_rows} rows"
            )
        check_prompts(request, spec, [middle(window) for window in windows], "window's middle")

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """All windows."""
        return sum(map(len, self.cut(spec.latent_frames(request.pixel_frames))))

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """None: a window sees itself."""
        return 0

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """A window for each worker."""
        return len(self.cut(spec.latent_frames(request.pixel_frames)))

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Write a launch of all windows for each step, then the decode of the one block."""
        ticks = count()
        if script.begin(0) is None:
            return
        windows = self.cut(spec.latent_frames(request.pixel_frames))
        whole = Span(0, windows[-1].stop)
        cues = [script.cue_at(0, middle(window)) for window in windows]
        for cue in dict.fromkeys(cues):
            yield Task(next(ticks), Kind.ENCODE, 0, whole, cue)
        for step in range(steps):
            last = step == steps - 1
            parts = tuple(
                Part(0, window, step, cue, 0, last=last)
                for window, cue in zip(windows, cues, strict=True)
            )
            drops = (0,) if last else ()
            yield Task(next(ticks), Kind.DENOISE, 0, whole, cues[0], step, parts=parts, drops=drops)
        yield Task(next(ticks), Kind.DECODE, 0, whole, cues[-1])


def middle(window: Span) -> int:
    """The frame that decides under which prompt a window is; of the first, its first."""
    return window.start and (window.start + window.stop) // 2
