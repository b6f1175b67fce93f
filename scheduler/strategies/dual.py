"""A queue of blocks at falling levels that flows through the stages of the transformer.

DualParal (arXiv 2505.21070). In every iteration a block of noise joins the queue, each block in it
takes one step, and the one in front leaves once it has taken them all: neighbours differ by one
step, and a video may have any length. Those that joined last go first, so what a block sees of the
one before it was settled long ago, and the next blocks fill the stages: that is where this strategy
runs on several workers.

A step evaluates the last `context` frames of the block before, then the block's own `frames`, all
told the block's level. They also see the first `context` frames of the block after, by the keys of
its step right before, in the same iteration. Positions are counted in this window. The first block
has `context` frames more instead of those before it, so all launches have one length; only the last
block may be shorter.

Two things are settled here that the published code leaves to chance: the block before has always
taken its step of the iteration before, never that of the same one, and the video is as long as it
was asked for, not `context` frames longer. A switch of prompt holds for the blocks that join after
it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Script
from longtake.scheduler.task import Kind, Part, Seen, Span, Task

AFTER = 0  # the cache's one row: how blocks begin, for those before them


@dataclass
class Queued:
    """A block in the making, and how many steps it has taken."""

    block: int
    frames: Span
    cue: int
    step: int = 0


@dataclass(frozen=True)
class Dual:
    """See the module; `frames` and `context` are latent frames."""

    frames: int
    context: int
    label: str = "lossy"

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UserError(f"a block has at least 1 latent frame, got {self.frames}")
        if not 1 <= self.context <= self.frames:
            raise UserError(
                "a block sees frames of the nearest block on either side, so the context is 1 to "
                f"{self.frames} latent frames, as many as a block has; got {self.context}"
            )

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """How many blocks cover the request."""
        if request.seconds is None:
            return None
        later = spec.latent_frames(request.pixel_frames) - self._span(0).stop
        return 1 + max(0, -(-later // self.frames))

    def seams(self, frames: int) -> list[int]:
        """The latent frames with which blocks after the first begin; the first has more."""
        return list(range(self._span(1).start, frames, self.frames))

    def check(self, request: Request, spec: ModelSpec) -> None:
        """Refuse sizes that the model can't tile, windows that it has no positions for, and prompts
        that would never be seen."""
        spec.grid(request.height, request.width)
        window = self.frames + 2 * self.context
        if window > spec.rotary_rows:
            raise UserError(
                f"a block of {self.frames} latent frames and {self.context} on either side are "
                f"{window} positions, but the model's rotary table has {spec.rotary_rows} rows"
            )
        blocks = self.blocks(request, spec)
        starts = [self._first_from(round(cue.at * request.fps), spec) for cue in request.cues]
        for cue, start, stop in zip(request.cues, starts, [*starts[1:], blocks], strict=True):
            if stop is not None and start >= stop:
                first = spec.pixel_frames(self._span(1).start) / request.fps
                every = self.frames * spec.temporal_stride / request.fps
                raise UserError(
                    f"the prompt at {cue.at:g} s would never be seen: prompts change where a block "
                    f"begins, at {first:g} s and then every {every:g} s, and no block is left to it"
                )

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """A block and what it sees before it."""
        return self.frames + self.context

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """The beginnings of two blocks, so that a launch reads one and writes the other."""
        return 0 if self.blocks(request, spec) == 1 else 2 * self.context

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """A launch is of one block: those in the making meet in the stages."""
        return 1

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Write iteration after iteration, and the decode of the block that leaves."""
        ticks, blocks = count(), self.blocks(request, spec)
        total = None if blocks is None else spec.latent_frames(request.pixel_frames)
        queue: deque[Queued] = deque()
        begun, cue = 0, None
        evicts: tuple[tuple[int, Span], ...] = ()
        while True:
            if begun != blocks:
                frames = self._span(begun, total)
                previous, cue = cue, script.begin(begun, frames.start)
                if cue is None:
                    blocks = begun
                else:
                    if cue != previous:
                        yield Task(next(ticks), Kind.ENCODE, begun, frames, cue)
                    queue.append(Queued(begun, frames, cue))
                    begun += 1
            if not queue:
                return
            for place in reversed(range(len(queue))):
                task = self._launch(next(ticks), queue, place, steps)
                yield replace(task, evicts=evicts)
                evicts = tuple(
                    (AFTER, seen.frames) for seen in task.parts[-1].sees if seen.row is not None
                )
                queue[place].step += 1
            if queue[0].step == steps:
                done = queue.popleft()
                yield Task(next(ticks), Kind.DECODE, done.block, done.frames, done.cue)

    def _launch(self, tick: int, queue: deque[Queued], place: int, steps: int) -> Task:
        """The next step of the block at a place of the queue, where those behind took theirs."""
        queued = queue[place]
        frames, last = queued.frames, queued.step == steps - 1
        before = Span(max(0, frames.start - self.context), frames.start)
        at = len(before)
        sees = []
        if place + 1 < len(queue):
            after = self._beginning(queue[place + 1])
            sees.append(Seen(after, at + len(frames), AFTER))
        own = Part(
            queued.block,
            frames,
            queued.step,
            queued.cue,
            at,
            sees=(Seen(before, 0), *sees) if before else tuple(sees),
            writes=AFTER if place > 0 else None,
            keeps=self._beginning(queued) if place > 0 else None,
            last=last,
        )
        parts: tuple[Part, ...] = (own,)
        if before:
            theirs = Seen(frames, at)
            context = replace(
                own,
                block=queued.block - 1,
                frames=before,
                at=0,
                sees=(theirs, *sees),
                writes=None,
                keeps=None,
                last=False,
                idle=True,
            )
            parts = (context, own)
        return Task(
            tick,
            Kind.DENOISE,
            queued.block,
            frames,
            queue[0].cue,
            queued.step,
            last=last,
            parts=parts,
            drops=(queued.block - 1,) if last and before else (),
        )

    def _beginning(self, queued: Queued) -> Span:
        """The frames that the block before it sees."""
        start, stop = queued.frames.start, queued.frames.stop
        return Span(start, min(stop, start + self.context))

    def _span(self, block: int, total: int | None = None) -> Span:
        """The frames of a block, in a video of so many."""
        start = block * self.frames + self.context if block else 0
        stop = (block + 1) * self.frames + self.context
        return Span(start, stop if total is None else min(stop, total))

    def _first_from(self, pixel_frame: int, spec: ModelSpec) -> int:
        """The first block that begins at this pixel frame or later."""
        block = 0
        while spec.pixel_frames(self._span(block).start) < pixel_frame:
            block += 1
        return block
