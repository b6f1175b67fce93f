"""The memory of MemFlow (arXiv 2512.14699): a bank of frames, scored by the prompt.

A block sees [sink | bank | local window]. Of every few blocks, the first frame goes to the bank
when it leaves the window; a full bank then keeps, besides the newcomer, the frames that the prompt
of the coming block asks for most. Which those are, every layer decides for itself, in
`runtime.bank_window`; how many frames lie where, is known here. All of it is seen at consecutive
positions, so a video may have any length.
"""

from __future__ import annotations

from dataclasses import dataclass

from longtake.scheduler.consecutive_retention import ConsecutiveRetention
from longtake.scheduler.errors import UserError
from longtake.scheduler.task import Span


@dataclass(frozen=True)
class BankRetention(ConsecutiveRetention):
    """All in latent frames.

    Attributes:
        window: what a block sees at most: sink, bank, past and itself.
        sink: kept at the start of the video.
        bank: kept of what has left the window.
        every: of so many blocks one gives a frame to the bank.
        active: of sink and bank, each head sees so many, those closest to its queries; None: all.
        recache: a switch of prompt writes the window again, but neither sink nor bank.
    """

    window: int = 15
    sink: int = 3
    bank: int = 3
    every: int = 3
    active: int | None = None
    recache: bool = True

    def __post_init__(self) -> None:
        for name, least in (("sink", 0), ("bank", 1), ("every", 1), ("active", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")

    def check(self, block_frames: int, total_frames: int | None, rotary_rows: int) -> None:
        """Refuse what can't run, before it runs; see `Retention.check`.

        Raises:
            UserError: a block doesn't fit the window, or positions would outgrow the model.
        """
        least = self.sink + self.bank + block_frames
        if self.window < least:
            raise UserError(
                f"a window of {self.window} latent frames can't hold {self.sink} sink frames, a "
                f"bank of {self.bank} and a block of {block_frames}; the least is {least}"
            )
        self.check_places(total_frames, rotary_rows)

    def local(self, done: int) -> int:
        """The first frame of the local window that ends before frame `done`."""
        return max(self.sink, done - (self.window - self.sink - self.bank))

    def prototypes(self, left: Span, block_frames: int) -> list[int]:
        """Those of the frames that leave the window which go to the bank."""
        return [frame for frame in left.frames() if frame % (block_frames * self.every) == 0]

    def banked(self, done: int, block_frames: int) -> int:
        """How many frames the bank holds when the local window ends before frame `done`."""
        left = Span(self.sink, self.local(done))
        return min(self.bank, len(self.prototypes(left, block_frames)))

    def taken(self, frames: Span, block_frames: int) -> int:
        """How many frames are cached before `frames`, which end the local window: a block, or all
        of the window that is written again."""
        local = self.local(frames.stop)
        return self.sink + self.banked(frames.stop, block_frames) + frames.start - local

    def past(self, frames: Span) -> int:
        """See `ConsecutiveRetention`; what was chosen are frames of the bank."""
        return self.taken(frames, len(frames))

    def selects(self, frames: Span) -> bool:
        """Never: what stays does not depend on what is noisy."""
        return False

    def recached(self, done: int, first: int = 0) -> tuple[tuple[Span, ...], Span, int]:
        """What to do at a switch of prompt after `done` frames; see `Retention.recached`."""
        local = self.local(done)
        if local == self.sink:
            return (), Span(0, done), 0
        return (Span(0, self.sink),), Span(local, done), 0
