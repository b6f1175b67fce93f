"""What memories share whose window holds more than runs of frames: sink, chosen, and newest.

It is seen at consecutive positions, whatever lies in it, so a video may have any length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from longtake.scheduler.errors import UserError
from longtake.scheduler.task import Span


class ConsecutiveRetention(ABC):
    """See the module; `window`, what a block sees at most, and `sink` are in latent frames."""

    window: int
    sink: int

    @abstractmethod
    def past(self, frames: Span) -> int:
        """How many frames' worth the block `frames` sees besides itself."""

    def check_places(self, total_frames: int | None, rotary_rows: int) -> None:
        """See that the model has a position for all of the window.

        Raises:
            UserError: it has fewer.
        """
        if self.capacity(total_frames) > rotary_rows:
            raise UserError(
                f"a window of {self.window} latent frames can't be placed: the model's rotary "
                f"table has {rotary_rows} rows"
            )

    def capacity(self, total_frames: int | None) -> int:
        """Latent frames' worth that the cache must hold."""
        return self.window if total_frames is None else min(self.window, total_frames)

    def context(self, frames: Span, first: int = 0) -> tuple[Span, ...]:
        """What the block `frames` sees of the past, and where.

        Once something was chosen, the first places of the second span are those of what stayed,
        from whichever frames since the sink.
        """
        past = self.past(frames)
        if past == frames.start:
            spans = [Span(0, past)]
        else:
            spans = [Span(0, self.sink), Span(frames.start - past + self.sink, frames.start)]
        return tuple(span for span in spans if len(span))
