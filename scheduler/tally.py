"""What a worker has sent and waited for, and what it keeps, in a few numbers of every run."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from longtake.scheduler.timeline import MAIN, Action, Activity, Record, forget


@dataclass(frozen=True)
class Occupancy:
    """Bytes of a worker's cache: those that hold something, and all of them."""

    used: int = 0
    room: int = 0


@dataclass(frozen=True)
class Load:
    """A worker in the numbers that an operator looks at.

    Attributes:
        waited: seconds that it stood still for transfers since the run began.
        sent: bytes since then, by the rank that they went to.
        cache: as it is now.
    """

    waited: float = 0.0
    sent: Mapping[int, int] = field(default_factory=dict)
    cache: Occupancy = field(default_factory=Occupancy)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "waited": round(self.waited, 3)}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """The inverse, also of what JSON has made of it."""
        sent = {int(rank): int(size) for rank, size in told["sent"].items()}
        return cls(float(told["waited"]), sent, Occupancy(**told["cache"]))


class Tally:
    """A `Record` of transfers, for any of a worker's threads; it passes all on.

    Attributes:
        sent: bytes by name of transfer.
        cache: tells the occupancy of the cache, once there is one.
    """

    def __init__(self, record: Record = forget) -> None:
        self._record, self._lock = record, threading.Lock()
        self._waited, self._links = 0.0, Counter[int]()
        self.sent: Counter[str] = Counter()
        self.cache: Callable[[], Occupancy] = Occupancy

    def __call__(self, action: Action) -> None:
        """Count an action that is over."""
        with self._lock:
            for rank, size in action.to:
                self._links[rank] += size
            if action.activity is Activity.TRANSFER:
                self.sent[action.name] += action.bytes
            elif action.activity is Activity.WAIT and action.lane == MAIN:
                self._waited += action.stop - action.start  # what is beside stops nobody
        self._record(action)

    def load(self) -> Load:
        """All of it now."""
        with self._lock:
            return Load(self._waited, dict(self._links), self.cache())
