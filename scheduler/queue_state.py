"""What the queue sees and what it answers: devices, jobs that wait or run, and a decision.

All instants are seconds on one clock, that of whoever asks; the queue has none of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from math import inf

from longtake.scheduler.degrees import Degrees


class Priority(StrEnum):
    """Whose turn comes first, whatever the deadlines."""

    INTERACTIVE = "interactive"  # somebody watches while it is being made
    BATCH = "batch"


@dataclass(frozen=True)
class FleetDevice:
    """A device that a worker can have.

    Attributes:
        name: unique in the fleet.
        node: devices of one node reach each other fast.
        memory: bytes.
        speed: relative to the device that options are reckoned for.
        until: the instant at which it leaves, where that is known: a notice, or a time limit.
    """

    name: str
    node: str
    memory: float
    speed: float = 1.0
    until: float = inf

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ValueError(f"the speed of {self.name} must be more than 0, got {self.speed:g}")


@dataclass(frozen=True)
class Option:
    """One way to share a job out, and what it takes.

    Attributes:
        degrees: the workers.
        seconds: from the first block to the last, on one node of devices of speed 1.
        memory: bytes of the worker that holds most.
        across: how many times as long it takes on several nodes.
    """

    degrees: Degrees
    seconds: float
    memory: float
    across: float = 1.0

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.across >= 1):
            raise ValueError(f"an option must take time, and no less on several nodes; got {self}")

    @cached_property
    def workers(self) -> int:
        """Devices that it wants."""
        return self.degrees.world

    @cached_property
    def work(self) -> float:
        """Device seconds."""
        return self.workers * self.seconds


@dataclass(frozen=True)
class Run:
    """The group that a job has.

    Attributes:
        option: what it was started with.
        devices: names, by rank; one may have several ranks.
        started: when it got them.
        ends: when it is expected to be through.
        stops: when the devices would be free if it were told now to stop at its next tick.
        lost: seconds of work that it would have to do again then.
        stopping: it was told.
    """

    option: Option
    devices: tuple[str, ...]
    started: float
    ends: float
    stops: float
    lost: float = 0.0
    stopping: bool = False


@dataclass(frozen=True)
class JobView:
    """What the queue knows of an accepted job that is not through.

    Attributes:
        id: unique.
        arrived: when it was accepted.
        options: ways to run it; once it has begun, the one that it began with.
        deadline: when it should be through.
        remaining: the share of the work that is not in the journal, more than 0, at most 1.
        restore: seconds that a group takes to start, or to get to where the last one stopped.
        begun: finished blocks are in the journal. Later groups have the same degrees, because bits
            depend on them.
        held: seconds for which it has had devices, in runs that are over.
        run: the group that it has now.
    """

    id: str
    priority: Priority
    arrived: float
    options: tuple[Option, ...]
    deadline: float | None = None
    remaining: float = 1.0
    restore: float = 0.0
    begun: bool = False
    held: float = 0.0
    run: Run | None = None

    def __post_init__(self) -> None:
        if not self.options or (self.begun and len(self.options) > 1):
            raise ValueError(f"job {self.id} needs an option, and one alone once it has begun")
        if not 0 < self.remaining <= 1:
            raise ValueError(f"of job {self.id} remains {self.remaining:g}, not within (0, 1]")

    @cached_property
    def due(self) -> float:
        """The deadline; infinite without one."""
        return inf if self.deadline is None else self.deadline

    def waited(self, now: float) -> float:
        """Seconds that it has waited in all, with all its runs taken off."""
        return (now if self.run is None else self.run.started) - self.arrived - self.held

    def seconds(self, option: Option, speed: float = 1.0, across: bool = False) -> float:
        """What is left of it takes on devices of a speed, the start of a new group included."""
        whole = option.seconds * (option.across if across else 1.0) / speed
        return self.restore + self.remaining * whole


@dataclass(frozen=True)
class Policy:
    """What the queue promises.

    Attributes:
        patience: seconds of waiting after which a job has aged: see `queue_order`.
        aged_share: of all devices, 0 to 1, that aged jobs get before others have their turn.
        drain: seconds before a device leaves, from which on no group has it.
        reserved: so many waiting jobs, the first in order, have their place in time; those after
            them may not delay any of these.
        sharing: several ranks of a job that has begun may share a device if no more are left; NCCL
            has one rank on a GPU at most.
    """

    patience: float = 1800.0
    aged_share: float = 0.25
    drain: float = 60.0
    reserved: int = 24
    sharing: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.aged_share <= 1:
            raise ValueError(f"aged_share must be within (0, 1], got {self.aged_share:g}")
        if self.reserved < 1:
            raise ValueError(f"at least 1 job must be reserved for, got {self.reserved}")


@dataclass(frozen=True)
class Start:
    """A job gets these devices, by rank, and is expected to be through at `ends`."""

    job: str
    option: Option
    devices: tuple[str, ...]
    ends: float


@dataclass(frozen=True)
class Decision:
    """What is to be done now.

    Attributes:
        starts: groups to form, on devices that are free.
        preempts: ids of running jobs to be stopped at their next tick, with the reason.
        late: ids of jobs that can't meet their deadline any more, to be told; they stay.
        expected: when waiting jobs are expected to start, for the first ones in order.
        again: the instant at which to ask again, even if nothing has happened by then.
    """

    starts: tuple[Start, ...] = ()
    preempts: Mapping[str, str] = field(default_factory=dict)
    late: tuple[str, ...] = ()
    expected: Mapping[str, float] = field(default_factory=dict)
    again: float = inf
