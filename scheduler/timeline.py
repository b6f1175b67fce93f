"""What ran, how often and how long. A predicted and a measured timeline are of one type."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic

MAIN = "main"  # the lane whose usage is told: a worker's share of the transformer


class Activity(StrEnum):
    """What a worker's time goes into."""

    COMPUTE = "compute"
    TRANSFER = "transfer"  # bytes are on their way, whether or not somebody waits for them
    WAIT = "wait"  # the worker stands still until a transfer is over


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a worker did, or is predicted to do.

    Attributes:
        start: seconds; of `time.monotonic` on that worker where it was measured.
        stop: seconds, not before `start`.
        bytes: what a transfer sends; 0 where it only receives.
        to: the same by the rank that it goes to, which traces don't keep.
        lane: what the worker does beside others in threads of its own, such as decoding.
    """

    worker: int
    activity: Activity
    name: str
    start: float
    stop: float
    bytes: int = 0
    lane: str = MAIN
    to: tuple[tuple[int, int], ...] = ()


Record = Callable[[Action], None]


def forget(action: Action) -> None:
    """A `Record` for whoever wants no trace."""


@dataclass
class Timeline:
    """Seconds and counts by kind of action. Only totals are kept, so a long run stays small."""

    origin: float = field(default_factory=monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self) -> None:
        """The run begins now."""
        self.origin = monotonic()

    def note(self, name: str, seconds: float) -> None:
        """Count an action; lanes in other threads may do so at the same time."""
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            self.counts[name] = self.counts.get(name, 0) + 1

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return monotonic() - self.origin

    def summary(self) -> dict[str, dict[str, float]]:
        """Seconds and counts by name of action."""
        return {
            name: {"seconds": round(self.seconds[name], 3), "count": self.counts[name]}
            for name in sorted(self.seconds)
        }
