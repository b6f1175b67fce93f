"""What one worker has of a task: which frames, tokens, heads, layers and branches of guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from longtake.scheduler.degrees import Degrees, Place, shares
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.task import Part, Seen, Task
from longtake.scheduler.traffic import Traffic

Look = tuple[int, int]  # query frames and key frames of one call of attention


@dataclass(frozen=True)
class Share:
    """Of one worker, for all tasks of its lane.

    Attributes:
        own: tokens of each frame that it takes through the layers.
        segment: tokens of each frame that it attends with, with `heads` of the heads.
        frame: tokens of a whole frame.
        layers: how many, of its stage.
        branches: of guidance, that it evaluates.
    """

    place: Place
    own: int
    segment: int
    frame: int
    heads: int
    layers: int
    branches: int
    clips: int

    @classmethod
    def of(cls, rank: int, degrees: Degrees, spec: ModelSpec, request: Request) -> Share:
        """The share of a rank."""
        place = degrees.place(rank)
        rows, columns = spec.grid(request.height, request.width)
        tokens = [len(span) for span in shares(rows * columns, degrees.sequence)]
        first = place.ring * degrees.ulysses
        return cls(
            place=place,
            own=tokens[first + place.ulysses],
            segment=sum(tokens[first : first + degrees.ulysses]),
            frame=rows * columns,
            heads=spec.heads // degrees.ulysses,
            layers=len(degrees.layers(place.stage, spec)),
            branches=(2 if request.guidance > 1 else 1) // degrees.cfg,
            clips=degrees.clip,
        )

    def batch(self, task: Task) -> int:
        """How many branches of guidance it evaluates in a task."""
        return self.branches if task.branch is None else 1

    def parts(self, task: Task) -> tuple[Part, ...]:
        """Its parts of a launch."""
        own = self.traffic(task).shares[self.place.clip]
        return task.parts[own.start : own.stop]

    def frames(self, task: Task) -> int:
        """How many frames it evaluates."""
        return sum(len(part.frames) for part in self.parts(task)) if task.parts else task.length

    def traffic(self, task: Task) -> Traffic:
        """Which keys travel between the workers that share out a launch's parts."""
        return Traffic.of(task.parts, self.clips)

    def looks(self, task: Task) -> tuple[Look, ...]:
        """Every call of attention in a layer, as `runtime` makes them."""
        if not task.parts:
            frames = task.length
            return ((frames, frames + sum(map(len, task.context))),)
        return _looks(task.parts, self.clips, self.place.clip)


@lru_cache(64)
def _looks(parts: tuple[Part, ...], clips: int, clip: int) -> tuple[Look, ...]:
    traffic = Traffic.of(parts, clips)
    found: list[Look] = []
    for index in traffic.shares[clip].frames():
        part = parts[index]
        near: list[Seen] = []
        far: list[Seen] = []
        for seen in part.sees:
            here = seen.row is not None
            here = here or traffic.owner(traffic.holder(seen.frames, index)) == clip
            (near if here else far).append(seen)
        if part.sees_itself:
            near.append(Seen(part.frames, part.at, None, part.bias, part.within))
        size = 1 if any(seen.by_distance for seen in (*near, *far)) else len(part.frames)
        for seens in (near, far):
            for first in range(part.frames.start, part.frames.stop, size):
                found += [(size, keys) for keys in _keys(seens, first)]
    return tuple(found)


def _keys(seens: Sequence[Seen], frame: int) -> list[int]:
    """Key frames that a query frame sees, by their bias."""
    by_bias: dict[float, int] = {}
    for seen in seens:
        for span in seen.seen_by(frame):
            by_bias[seen.bias] = by_bias.get(seen.bias, 0) + len(span)
    return list(by_bias.values())
