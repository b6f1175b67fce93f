"""The memory of linear attention (SANA-Video, arXiv 2509.24695): sums of constant size.

A block sees all of the past, at absolute positions, and nothing is ever evicted: there is no way to
take it out of a sum. Only weights that were trained for linear attention make sense of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from longtake.scheduler.errors import UserError
from longtake.scheduler.task import Span


@dataclass(frozen=True)
class ConstantState:
    """See `scheduler.retention.CachePolicy`."""

    @property
    def recache(self) -> bool:
        """Never: what was added under the old prompt can't be taken out again."""
        return False

    def check(self, block_frames: int, total_frames: int | None, rotary_rows: int) -> None:
        """Refuse positions that the model wasn't made for.

        Raises:
            UserError: the video is too long for them.
        """
        if total_frames is None or total_frames > rotary_rows:
            length = "an endless stream" if total_frames is None else f"{total_frames} frames"
            raise UserError(
                f"{length} can't be placed at absolute positions, of which the model has "
                f"{rotary_rows}"
            )

    def capacity(self, total_frames: int | None) -> int:
        """No keys and values are kept."""
        return 0

    def context(self, frames: Span, first: int = 0) -> tuple[Span, ...]:
        """All of the past."""
        return (Span(0, frames.start),) if frames.start else ()

    def recached(self, done: int, first: int = 0) -> tuple[tuple[Span, ...], Span, int]:
        """Not to be asked: there is no `recache`."""
        raise ValueError("a constant state is never written again")

    def selects(self, frames: Span) -> bool:
        """Never: everything stays."""
        return False
