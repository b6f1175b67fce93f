"""Coarse to fine: key blocks across the whole video first, then what lies between them.

NUWA-XL (arXiv 2303.12346) and TempoMaster, with a model that knows noise levels block by block. The
first level makes key blocks `fanout ** (levels - 1)` blocks apart, and the last block, jointly. The
next levels cut every stretch between neighbouring blocks that are there into `fanout` pieces, and
make the blocks where they cut: all stretches in one launch, and so on all workers. The two ends of
a stretch are parts of the launch at noise level 0; that is how the model is told of them.

A key is a whole block, not a frame: that is what the model was trained to denoise as a unit and to
see at a level of its own, and its frames show what moves, and how fast, where a stretch begins and
ends. Parts of a stretch see each other both ways; an end belongs to the stretches on both sides.

With one level, all frames are one block: that is bidirectional generation, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Literal

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Script
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind, Part, Seen, Span, Task


@dataclass(frozen=True)
class Round:
    """What one level makes, as indices of blocks: those of each stretch, and which are `new`."""

    stretches: tuple[tuple[int, ...], ...]
    new: frozenset[int]

    @property
    def blocks(self) -> list[int]:
        """All that take part, in order of time."""
        return sorted({block for stretch in self.stretches for block in stretch})

    def seen(self, block: int) -> list[int]:
        """What a block sees, itself included, in order of time."""
        return sorted({other for some in self.stretches if block in some for other in some})


@dataclass(frozen=True)
class Keyframes:
    """See the module.

    Attributes:
        levels: None: as few as keep every stretch, and the first level, within `fanout` + 1 blocks.
        fanout: pieces into which a level cuts a stretch.
        positions: blocks that are made before those between them stand as far apart as in the
            video (`spaced`), or side by side (`adjacent`).
    """

    levels: int | None = None
    fanout: int = 4
    positions: Literal["spaced", "adjacent"] = "spaced"
    label: str = "lossy"

    def __post_init__(self) -> None:
        if self.levels is not None and self.levels < 1:
            raise UserError(f"levels must be at least 1, got {self.levels}")
        if self.fanout < 2:
            raise UserError(f"a level cuts into at least 2 pieces, got a fanout of {self.fanout}")
        if self.positions not in ("spaced", "adjacent"):
            raise UserError(f"positions are spaced or adjacent, not {self.positions!r}")

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """As of causal generation; one level has one block."""
        if request.seconds is None:
            return None
        return len(self._spans(request, spec))

    def check(self, request: Request, spec: ModelSpec) -> None:
        """Refuse endless videos, several prompts in one block, prompts that would never be seen,
        and key blocks further apart than the model has positions for."""
        if request.seconds is None:
            raise UserError("keyframes span the whole video, so it can't be endless; use causal")
        Causal(Retention(spec.block_frames, positions=Positions.RELATIVE)).check(request, spec)
        if self.depth(request, spec) == 1 and len(request.cues) > 1:
            raise UserError("one level makes all frames as one block, which takes one prompt")
        spans = self._spans(request, spec)
        keys = self.rounds(request, spec)[0].blocks
        reach = self._place(len(keys) - 1, keys, spans) + len(spans[-1])
        if reach > spec.rotary_rows:
            closer = self.positions == "adjacent" or len(spans) == 1
            raise UserError(
                f"the first level reaches over {reach} positions, but the model's rotary table has "
                f"{spec.rotary_rows} rows; set "
                + ("more strategy.levels" if closer else "strategy.positions to adjacent")
            )

    def depth(self, request: Request, spec: ModelSpec) -> int:
        """How many levels there are."""
        if self.levels is not None:
            return self.levels
        blocks = -(-spec.latent_frames(request.pixel_frames) // spec.block_frames)
        levels = 1 if len(request.cues) == 1 else 2
        while self.fanout**levels < blocks - 1:
            levels += 1
        return levels

    def rounds(self, request: Request, spec: ModelSpec, blocks: int | None = None) -> list[Round]:
        """What each level makes, of the first so many blocks; levels without any are left out."""
        last = len(self._spans(request, spec) if blocks is None else range(blocks)) - 1
        found: list[Round] = []
        known: list[int] = []
        for level in reversed(range(self.depth(request, spec))):
            there = sorted({*range(0, last, self.fanout**level), last})
            ends = list(pairwise(known)) or [(0, last)]
            stretches = [tuple(b for b in there if low <= b <= high) for low, high in ends]
            new = frozenset(there) - frozenset(known)
            if new:
                found.append(Round(tuple(s for s in stretches if new.intersection(s)), new))
            known = there
        return found

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """The most that a level makes, with what it lies between."""
        spans = self._spans(request, spec)
        return max(sum(len(spans[b]) for b in level.blocks) for level in self.rounds(request, spec))

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """None."""
        return 0

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """All blocks of the last level."""
        return max(len(level.blocks) for level in self.rounds(request, spec))

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Write the launches of level after level, and decodes in order of time."""
        ticks, spans = count(), self._spans(request, spec)
        cues: list[int] = []
        for block, frames in enumerate(spans):
            cue = script.begin(block, frames.start)
            if cue is None:
                break
            if not cues or cue != cues[-1]:
                yield Task(next(ticks), Kind.ENCODE, block, frames, cue)
            cues.append(cue)
        rounds = self.rounds(request, spec, len(cues)) if cues else []
        made: set[int] = set()
        shown = 0
        for level in rounds:
            for step in range(steps):
                last = step == steps - 1
                yield Task(
                    next(ticks),
                    Kind.DENOISE,
                    level.blocks[0],
                    spans[level.blocks[0]],
                    cues[0],
                    parts=tuple(self._parts(level, spans, cues, step, last)),
                    drops=tuple(range(len(cues))) if last and level is rounds[-1] else (),
                )
            made |= level.new
            while shown in made:
                yield Task(next(ticks), Kind.DECODE, shown, spans[shown], cues[shown])
                shown += 1

    def _spans(self, request: Request, spec: ModelSpec) -> list[Span]:
        frames = spec.latent_frames(request.pixel_frames)
        if self.depth(request, spec) == 1:
            return [Span(0, frames)]
        each = spec.block_frames
        return [Span(start, start + each) for start in range(0, frames, each)]

    def _parts(
        self, level: Round, spans: Sequence[Span], cues: Sequence[int], step: int, last: bool
    ) -> Iterator[Part]:
        for block in level.blocks:
            seen = level.seen(block)
            place = {other: self._place(index, seen, spans) for index, other in enumerate(seen)}
            new = block in level.new
            yield Part(
                block,
                spans[block],
                step if new else None,
                cues[block],
                place[block],
                tuple(Seen(spans[other], place[other]) for other in seen if other != block),
                last=new and last,
                idle=not new,
            )

    def _place(self, index: int, seen: Sequence[int], spans: Sequence[Span]) -> int:
        """Positions count from the first that is seen: only how far apart they are matters."""
        if self.positions == "adjacent":
            return sum(len(spans[block]) for block in seen[:index])
        return spans[seen[index]].start - spans[seen[0]].start
