"""Which frames' keys travel between the workers that share out the parts of a launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from longtake.scheduler.degrees import shares
from longtake.scheduler.task import Part, Span


@dataclass(frozen=True)
class Traffic:
    """Of one launch: every worker knows the same, so no sizes need to travel.

    Attributes:
        parts: of the launch.
        shares: the parts that each worker has, as indices.
    """

    parts: tuple[Part, ...]
    shares: tuple[Span, ...]

    @classmethod
    def of(cls, parts: Sequence[Part], workers: int) -> Traffic:
        """Share parts out evenly, in order."""
        return _traffic(tuple(parts), workers)

    def holder(self, frames: Span, reader: int) -> int:
        """The other part of the launch that has these frames, or the reader where no other has.

        Raises:
            ValueError: none has, or several others have.
        """
        found = [
            index
            for index, part in enumerate(self.parts)
            if part.frames.start <= frames.start and frames.stop <= part.frames.stop
        ]
        found = [index for index in found if index != reader] or found
        if len(found) != 1:
            raise ValueError(
                f"frames {frames.start} .. {frames.stop - 1} should be seen live, but "
                f"{len(found)} other parts of the launch have them"
            )
        return found[0]

    def owner(self, index: int) -> int:
        """The worker that evaluates a part."""
        return next(w for w, share in enumerate(self.shares) if index in share.frames())

    def spans(self, source: int, target: int) -> tuple[Span, ...]:
        """What one worker sends to another: runs of its own frames, counted over all its parts."""
        sent = self._sent.get((source, target), ())
        return tuple(
            Span(first, first + len(span))
            for index, span in sent
            for first in [self._place(index) + span.start - self.parts[index].frames.start]
        )

    def frames(self, source: int, target: int) -> int:
        """How many frames' keys that is."""
        return sum(len(span) for _, span in self._sent.get((source, target), ()))

    def find(self, index: int, frames: Span, worker: int) -> tuple[int, int]:
        """Where a worker has frames of a part: whose they are, and where they begin there.

        For its own that counts over all its parts' frames, otherwise over what it is sent.
        """
        owner = self.owner(index)
        if owner == worker:
            return owner, self._place(index) + frames.start - self.parts[index].frames.start
        first = 0
        for sent, span in self._sent[owner, worker]:
            if sent == index and span.start <= frames.start and frames.stop <= span.stop:
                return owner, first + frames.start - span.start
            first += len(span)
        raise ValueError(f"frames {frames} of part {index} are not sent to worker {worker}")

    def _place(self, index: int) -> int:
        first = self.shares[self.owner(index)].start
        return sum(len(part.frames) for part in self.parts[first:index])

    @cached_property
    def _sent(self) -> dict[tuple[int, int], tuple[tuple[int, Span], ...]]:
        """Part and frames, by sender and receiver; nothing is sent twice."""
        wanted: dict[tuple[int, int], dict[int, set[int]]] = {}

        def want(index: int, frames: Span, reader: int) -> None:
            owner = self.owner(index)
            if owner != reader:
                by_part = wanted.setdefault((owner, reader), {})
                by_part.setdefault(index, set()).update(frames.frames())

        for index, part in enumerate(self.parts):
            for seen in part.sees:
                if seen.row is None:
                    want(self.holder(seen.frames, index), seen.frames, self.owner(index))
            if part.writes is not None:
                for worker in range(len(self.shares)):
                    want(index, part.kept, worker)
        return {
            ends: tuple((index, run) for index in sorted(found) for run in runs(found[index]))
            for ends, found in wanted.items()
        }


@lru_cache(16)
def _traffic(parts: tuple[Part, ...], workers: int) -> Traffic:
    return Traffic(parts, tuple(shares(len(parts), workers)))


def runs(frames: set[int]) -> list[Span]:
    """Frames as spans, in order."""
    found: list[Span] = []
    for frame in sorted(frames):
        if found and found[-1].stop == frame:
            found[-1] = Span(found[-1].start, frame + 1)
        else:
            found.append(Span(frame, frame + 1))
    return found
