"""What the user asked for. It never says how many GPUs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from longtake.scheduler.errors import UserError


@dataclass(frozen=True)
class Cue:
    """A prompt that holds from `at` seconds on."""

    at: float
    text: str


@dataclass(frozen=True)
class Request:
    """One video.

    `cues` are in order of time and the first is at 0; `seconds` is None for a stream that runs
    until it is stopped; `height` and `width` are in pixels; `guidance` is the scale of
    classifier-free guidance (1: none), against the prompt `negative`.
    """

    cues: tuple[Cue, ...]
    seconds: float | None
    height: int
    width: int
    fps: int
    seed: int = 0
    guidance: float = 1.0
    negative: str = ""

    def __post_init__(self) -> None:
        if not self.cues or not all(cue.text.strip() for cue in self.cues):
            raise UserError("the prompt is empty; say what the video should show")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UserError(f"seconds must be a positive number, got {self.seconds:g}")
        if self.fps < 1:
            raise UserError(f"fps must be at least 1, got {self.fps}")
        if not (math.isfinite(self.guidance) and self.guidance >= 1):
            raise UserError(f"guidance must be at least 1 (1 turns it off), got {self.guidance:g}")
        if self.seconds is not None and self.pixel_frames < 1:
            raise UserError(
                f"{self.seconds:g} seconds at {self.fps} fps is not one frame; "
                f"ask for at least {1 / self.fps:g} seconds"
            )
        self._check_timeline()

    def _check_timeline(self) -> None:
        times = [cue.at for cue in self.cues]
        if times[0] != 0:
            raise UserError(f"the first prompt must start at 0 seconds, not at {times[0]:g}")
        for before, after in itertools.pairwise(times):
            if not after > before:
                raise UserError(
                    f"prompts must be in order of time: {after:g} s comes after {before:g} s"
                )
        if self.seconds is not None and times[-1] >= self.seconds:
            raise UserError(
                f"a prompt starts at {times[-1]:g} s, but the video ends at {self.seconds:g} s"
            )
        if not math.isfinite(times[-1]):
            raise UserError(f"a prompt must start at a finite time, not at {times[-1]:g} s")

    @property
    def pixel_frames(self) -> int:
        """Frames of the finished video.

        Raises:
            ValueError: the request is endless.
        """
        if self.seconds is None:
            raise ValueError("an endless request has no number of frames")
        return round(self.seconds * self.fps)
