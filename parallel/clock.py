"""One clock for all workers: how far each one's `time.monotonic` is from rank 0's.

A worker asks rank 0 for its time. Rank 0 read its clock at some moment between question and answer,
so the middle of the two is off by half the round trip at most, however lopsided the way was. Of
several rounds the shortest says most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

_ROUNDS = 16


class Store(Protocol):
    """Text under keys, shared by all workers, such as the mesh's control store."""

    def set(self, key: str, text: str) -> None:
        """Put a text."""

    def get(self, key: str) -> str:
        """Wait until somebody has put the text, and give it."""


@dataclass(frozen=True)
class Offset:
    """Seconds to add to a worker's clock to get rank 0's.

    Attributes:
        seconds: rank 0's time minus the worker's.
        uncertainty: seconds; the true value is within `seconds` +/- `uncertainty`.
        at: when it was measured, in seconds of the worker's clock.
    """

    seconds: float
    uncertainty: float
    at: float

    def shared(self, local: float) -> float:
        """A time of the worker's clock on rank 0's."""
        return local + self.seconds


@dataclass(frozen=True)
class Drift:
    """Two measurements of one worker, for a run so long that the two clocks' rates matter."""

    first: Offset
    last: Offset

    def shared(self, local: float) -> float:
        """A time of the worker's clock on rank 0's.

        Where the two agree within their uncertainty the sharper one holds throughout; else the
        offset moves steadily from the first to the last.
        """
        moved = self.last.seconds - self.first.seconds
        if abs(moved) <= self.first.uncertainty + self.last.uncertainty:
            return min(self.first, self.last, key=lambda o: o.uncertainty).shared(local)
        passed = (local - self.first.at) / (self.last.at - self.first.at)
        return local + self.first.seconds + moved * passed


def measure_offset(
    store: Store,
    rank: int,
    world: int,
    *,
    name: str = "clock",
    now: Callable[[], float] = monotonic,
) -> Offset:
    """Called by all workers at about the same time; rank 0 answers one worker after the other.

    Args:
        name: prefix of the keys; each measurement of a run needs its own.
        now: this worker's clock, in seconds.

    Errors of the store pass through, for instance when a worker does not answer in time.
    """
    if rank == 0:
        for other in range(1, world):
            for turn in range(_ROUNDS):
                store.get(f"{name}/{other}/{turn}/question")
                store.set(f"{name}/{other}/{turn}/answer", repr(now()))
        return Offset(0.0, 0.0, now())
    return min((_ask(store, f"{name}/{rank}/{turn}", now) for turn in range(_ROUNDS)), key=_width)


def _ask(store: Store, key: str, now: Callable[[], float]) -> Offset:
    asked = now()
    store.set(f"{key}/question", "")
    reference = float(store.get(f"{key}/answer"))
    answered = now()
    middle = (asked + answered) / 2
    return Offset(reference - middle, (answered - asked) / 2, middle)


def _width(offset: Offset) -> float:
    return offset.uncertainty
