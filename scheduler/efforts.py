"""What parts of tasks and messages between lanes take: what a simulation asks a cost model for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from longtake.scheduler.task import Edge, Task


@dataclass(frozen=True)
class Effort:
    """What a part takes of its lane.

    Attributes:
        compute: seconds of its slowest worker.
        exchange: seconds in which all of its workers stand still while bytes travel.
        beside: seconds of bytes that travel while it computes; what is left of them is waited for.
        bytes: what all of its workers send to each other.
        crowded: seconds that they stand still besides while the lane decodes.
    """

    compute: float
    exchange: float = 0.0
    beside: float = 0.0
    bytes: int = 0
    crowded: float = 0.0


@dataclass(frozen=True)
class Travel:
    """What a message between two lanes takes.

    Attributes:
        latency: seconds until its first byte is there.
        busy: seconds in which it holds every one of the `ports` that it passes.
        ports: whatever other messages pass too, and only one at a time.
        bytes: from all workers of the lane together.
    """

    latency: float
    busy: float
    ports: tuple[str, ...] = ()
    bytes: int = 0


class Efforts(Protocol):
    """What parts and messages take."""

    def effort(self, part: Task) -> Effort:
        """Of a part on its lane."""
        ...

    def decode(self, piece: Task) -> Mapping[str, Effort]:
        """Of a DECODE, on every lane that decodes beside what else it does."""
        ...

    def travel(self, edge: Edge, part: Task) -> Travel:
        """Of an edge that this part sends."""
        ...
