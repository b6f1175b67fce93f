"""The memory of causal generation: which frames stay cached, and at which positions they are seen.

Pure functions on indices of latent frames; `runtime.kv_cache` applies them to tensors.
Self Forcing: a window without sink. LongLive: window 12 with 3 sink frames, re-cached at a switch
of prompt. `docs/architecture.md` names the sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from longtake.scheduler.errors import UserError
from longtake.scheduler.task import Span


class Positions(StrEnum):
    """How the temporal positions of cached frames are counted."""

    ABSOLUTE = "absolute"  # the frame's index in the video
    RELATIVE = "relative"  # the place in the present window, from 0
    SINK_REBASED = "sink_rebased"  # absolute, but the sink always stands right before the window


class CachePolicy(Protocol):
    """What causal generation asks of its memory; the methods are those of `Retention`."""

    @property
    def recache(self) -> bool:
        """Whether a switch of prompt writes the past again."""
        ...

    def check(self, block_frames: int, total_frames: int | None, rotary_rows: int) -> None:
        """Refuse, with a `UserError`, what can't run."""
        ...

    def capacity(self, total_frames: int | None) -> int:
        """Latent frames that the cache must hold."""
        ...

    def context(self, frames: Span, first: int = 0) -> tuple[Span, ...]:
        """What the block `frames` sees of the past."""
        ...

    def recached(self, done: int, first: int = 0) -> tuple[tuple[Span, ...], Span, int]:
        """What to do at a switch of prompt."""
        ...

    def selects(self, frames: Span) -> bool:
        """Whether the block's first step decides what stays cached, by its noisy queries."""
        ...


@dataclass(frozen=True)
class Retention:
    """A window of latent frames over the past.

    `window` counts everything that a block sees: sink, past and itself; None keeps all. `sink`
    frames at the start are never evicted. With `recache`, a switch of prompt rewrites the window
    under the new text; `keep_sink` then leaves the old sink as it is once the window is full.
    """

    window: int | None = None
    sink: int = 0
    positions: Positions = Positions.ABSOLUTE
    recache: bool = True
    keep_sink: bool = True

    def __post_init__(self) -> None:
        if self.sink < 0:
            raise UserError(f"sink must be at least 0 latent frames, got {self.sink}")
        if self.window is not None and self.window <= self.sink:
            raise UserError(
                f"the window ({self.window} latent frames) counts the sink and must be larger "
                f"than it ({self.sink})"
            )

    def check(self, block_frames: int, total_frames: int | None, rotary_rows: int) -> None:
        """Refuse what can't run, before it runs. `total_frames` is None for an endless stream.

        Raises:
            UserError: a block doesn't fit the window, or positions would outgrow the model.
        """
        if self.window is not None and self.window < self.sink + block_frames:
            raise UserError(
                f"a window of {self.window} latent frames can't hold {self.sink} sink frames and "
                f"a block of {block_frames}; the least is {self.sink + block_frames}"
            )
        if self.window is None and total_frames is None:
            raise UserError("an endless stream needs a window; set strategy.window")
        absolute = self.positions is Positions.ABSOLUTE
        reach = total_frames if absolute else self.capacity(total_frames)
        if reach is None or reach > rotary_rows:
            length = "an endless stream" if reach is None else f"{reach} latent frames"
            raise UserError(
                f"{length} can't be placed at {self.positions} positions: the model's rotary table "
                f"has {rotary_rows} rows; set a window and strategy.positions to relative or "
                "sink_rebased"
            )

    def capacity(self, total_frames: int | None) -> int:
        """Latent frames that the cache must hold."""
        if self.window is None:
            assert total_frames is not None
            return total_frames
        return self.window if total_frames is None else min(self.window, total_frames)

    def selects(self, frames: Span) -> bool:
        """Never: what stays is known beforehand."""
        return False

    def context(self, frames: Span, first: int = 0) -> tuple[Span, ...]:
        """What the block `frames` sees of the past, when frame `first` is the first ever kept."""
        if self.window is None or frames.stop - first <= self.window:
            spans = [Span(first, frames.start)]
        else:
            tail = frames.stop - (self.window - self.sink)
            spans = [Span(first, first + self.sink), Span(tail, frames.start)]
        return tuple(span for span in spans if len(span))

    def recached(self, done: int, first: int = 0) -> tuple[tuple[Span, ...], Span, int]:
        """What to do at a switch of prompt after `done` frames.

        Returns:
            The spans left as they are, the span to evaluate again, and the new `first`.
        """
        kept = done - first if self.window is None else min(self.window, done - first)
        full = self.window is not None and done - first > self.window
        if full and self.keep_sink and self.sink:
            sink = Span(first, first + self.sink)
            return (sink,), Span(done - kept + self.sink, done), first
        return (), Span(done - kept, done), done - kept

    def place(self, context: Sequence[Span], frames: Span) -> dict[int, int]:
        """The temporal position of every frame that a launch sees, by frame index."""
        seen = [frame for span in (*context, frames) for frame in span.frames()]
        if self.positions is Positions.RELATIVE:
            return {frame: index for index, frame in enumerate(seen)}
        placed = {frame: frame for frame in seen}
        sink, after = [*context, frames][:2] if context else (frames, frames)
        if self.positions is Positions.SINK_REBASED and sink.stop < after.start:
            placed |= {frame: frame + after.start - sink.stop for frame in sink.frames()}
        return placed

    def stored_unrotated(self, frame: int, first: int = 0) -> bool:
        """Whether the key of a frame is kept raw because the position it is seen at will change."""
        if self.positions is Positions.RELATIVE:
            return True
        return self.positions is Positions.SINK_REBASED and frame < first + self.sink
