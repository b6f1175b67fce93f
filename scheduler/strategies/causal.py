"""Block by block, each denoised over a cache of the clean past, then committed to it.

Self Forcing (arXiv 2506.08009), CausVid (arXiv 2412.07772), LongLive (arXiv 2509.22622), Deep
Forcing (arXiv 2512.05081) and MemFlow (arXiv 2512.14699) differ here only in their retention. A
block takes its steps, then one clean evaluation writes its keys and values: steps + 1 forwards a
block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.retention import CachePolicy
from longtake.scheduler.schedule import Script
from longtake.scheduler.task import Kind, Span, Task


@dataclass(frozen=True)
class Causal:
    """Causal generation under a retention policy."""

    retention: CachePolicy
    label: str = "lossy"

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """How many blocks cover the request; the last one may be longer than the video."""
        if request.seconds is None:
            return None
        return -(-spec.latent_frames(request.pixel_frames) // spec.block_frames)

    def latent_frames(self, request: Request, spec: ModelSpec) -> int | None:
        """Latent frames of all blocks; None for an endless video."""
        blocks = self.blocks(request, spec)
        return None if blocks is None else blocks * spec.block_frames

    def check(self, request: Request, spec: ModelSpec) -> None:
        """Refuse sizes the model can't tile, windows or lengths the retention can't hold, and
        prompts that would never be seen."""
        spec.grid(request.height, request.width)
        blocks = self.blocks(request, spec)
        total = self.latent_frames(request, spec)
        self.retention.check(spec.block_frames, total, spec.rotary_rows)
        starts = [spec.first_block_from(round(cue.at * request.fps)) for cue in request.cues]
        for cue, start, stop in zip(request.cues, starts, [*starts[1:], blocks], strict=True):
            if stop is not None and start >= stop:
                every = spec.block_frames * spec.temporal_stride / request.fps
                raise UserError(
                    f"the prompt at {cue.at:g} s would never be seen: prompts change where a block "
                    f"begins, every {every:g} s, and no block is left to it"
                )

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """A block, or where prompts may change, the window that is written again."""
        switches = request.seconds is None or len(request.cues) > 1
        again = switches and self.retention.recache
        return self.cached_frames(request, spec) if again else spec.block_frames

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """The window, or the whole video."""
        return self.retention.capacity(self.latent_frames(request, spec))

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """A block is not shared out by frames."""
        return 1

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Write the tasks of block after block."""
        ticks = count()
        blocks = self.blocks(request, spec)
        first = 0  # the first frame ever kept
        cue: int | None = None
        for block in count() if blocks is None else range(blocks):
            frames = Span(block * spec.block_frames, (block + 1) * spec.block_frames)
            previous, cue = cue, script.begin(block)
            if cue is None:
                return
            if cue != previous:
                yield Task(next(ticks), Kind.ENCODE, block, frames, cue)
                if block and self.retention.recache:
                    left, again, first = self.retention.recached(frames.start, first)
                    yield Task(next(ticks), Kind.RECACHE, block, again, cue, context=left)
            seen = self.retention.context(frames, first)
            for step in range(steps):
                yield Task(
                    next(ticks),
                    Kind.DENOISE,
                    block,
                    frames,
                    cue,
                    step,
                    context=seen,
                    last=step == steps - 1,
                    selects=step == 0 and self.retention.selects(frames),
                )
            yield Task(next(ticks), Kind.COMMIT, block, frames, cue, context=seen)
            yield Task(next(ticks), Kind.DECODE, block, frames, cue)
