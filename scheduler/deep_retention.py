"""The memory of Deep Forcing (arXiv 2512.05081): a deep sink, and tokens chosen by attention.

The cache of every layer is [sink | chosen tokens | recent frames]. It grows block by block; when a
block would not fit any more, the tokens between the sink and the recent frames compete: those that
the recent queries attend to most stay. All of it is seen at consecutive positions, so the sink
never moves away. Which tokens stay is decided by `runtime.deep_window`; how many, here.
"""

from __future__ import annotations

from dataclasses import dataclass

from longtake.scheduler.consecutive_retention import ConsecutiveRetention
from longtake.scheduler.errors import UserError
from longtake.scheduler.task import Span


@dataclass(frozen=True)
class DeepRetention(ConsecutiveRetention):
    """All in latent frames, and all but `sink` count the block in the making.

    Attributes:
        window: what a block sees at most.
        budget: what it sees after a choice.
        sink: kept whole at the start of the video.
        recent: kept whole at the end; their queries choose.
    """

    window: int = 21
    budget: int = 16
    sink: int = 10
    recent: int = 4

    def __post_init__(self) -> None:
        if self.sink < 0:
            raise UserError(f"sink must be at least 0 latent frames, got {self.sink}")
        if not self.sink + self.recent <= self.budget <= self.window:
            raise UserError(
                f"a budget of {self.budget} latent frames must hold the sink ({self.sink}) and the "
                f"recent frames ({self.recent}), and fit the window ({self.window}); legal are "
                f"{self.sink + self.recent} to {self.window}"
            )

    @property
    def recache(self) -> bool:
        """Never: tokens of frames long gone can't be evaluated again under another prompt."""
        return False

    @property
    def chosen(self) -> int:
        """How many frames' worth of tokens a choice keeps besides sink and recent frames."""
        return self.budget - self.sink - self.recent

    def check(self, block_frames: int, total_frames: int | None, rotary_rows: int) -> None:
        """Refuse what can't run, before it runs; see `Retention.check`.

        Raises:
            UserError: a block is longer than what is recent, or positions would outgrow the model.
        """
        if self.recent < block_frames:
            raise UserError(
                f"recent counts the block in the making, so it must be at least {block_frames} "
                f"latent frames, got {self.recent}"
            )
        self.check_places(total_frames, rotary_rows)

    def seen(self, frames: Span) -> int:
        """How many frames' worth of tokens the block `frames` sees, itself included."""
        size = len(frames)
        block = frames.start // size
        whole = self.window // size  # blocks that fit before anything is chosen
        if block < whole:
            return (block + 1) * size
        rounds = (self.window - self.budget) // size + 1
        return self.budget + (block - whole) % rounds * size

    def past(self, frames: Span) -> int:
        """See `ConsecutiveRetention`; what was chosen are tokens, `chosen` frames' worth."""
        return self.seen(frames) - len(frames)

    def held(self, frames: Span) -> int:
        """How many are cached when the block `frames` begins."""
        size = len(frames)
        return self.seen(Span(frames.start - size, frames.start)) if frames.start else 0

    def selects(self, frames: Span) -> bool:
        """Whether the first step of the block `frames` chooses what stays cached."""
        return self.held(frames) + len(frames) > self.window

    def recached(self, done: int, first: int = 0) -> tuple[tuple[Span, ...], Span, int]:
        """Not to be asked: there is no `recache`."""
        raise ValueError("deep retention never evaluates the past again")
