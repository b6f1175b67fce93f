"""The runners that the central scheduler has now, at work or waiting with a model loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from longtake.launch.fleet import Fleet, Group, Message
from longtake.scheduler.degrees import shares
from longtake.scheduler.queue_state import Option
from longtake.scheduler.tally import Load

Ending = Literal["preempt", "move", "cancel", "close"]


@dataclass(eq=False)
class Member:
    """A group, and what is known of it. Instants are those of a monotonic clock."""

    group: Group
    opened_at: float
    heard_at: float
    ready_at: float | None = None
    warm: str | None = None  # the model that it has loaded

    @property
    def devices(self) -> tuple[str, ...]:
        """See `Group`."""
        return self.group.devices


@dataclass(eq=False)
class Assigned:
    """A job that a group works at.

    Attributes:
        expected: seconds that all of the rest was expected to take.
        kept: blocks that were finished before.
        working_at: when it made its first progress, weights loaded.
        moved_at: when it last made progress; None: not yet.
        longest_pause: between two pieces of progress.
        begun: the last block that has begun.
        saved_at: when its blocks were last worth a word on the disk.
        granted: the last block that may begin.
        ending: why it was told to stop, at `stopped_at`.
        loads: what its workers last told of themselves, by rank.
    """

    job: str
    epoch: int
    group: Member
    option: Option
    devices: tuple[str, ...]
    given_at: float
    expected: float
    granted: int
    kept: int
    working_at: float | None = None
    moved_at: float | None = None
    longest_pause: float = 0.0
    begun: int = -1
    saved_at: float = 0.0
    ending: Ending | None = None
    stopped_at: float | None = None
    loads: dict[int, Load] = field(default_factory=dict)

    def device_of(self, rank: int) -> str:
        """Where a worker is; where devices are too few, neighbouring ranks have one together."""
        parts = shares(self.option.degrees.world, len(self.devices))
        return next(
            name
            for name, part in zip(self.devices, parts, strict=True)
            if part.start <= rank < part.stop
        )

    def move(self, now: float) -> None:
        """It made progress."""
        if self.moved_at is None:
            self.working_at = now
        else:
            self.longest_pause = max(self.longest_pause, now - self.moved_at)
        self.moved_at = now

    def seconds_per_block(self, blocks: int, now: float) -> float:
        """Of those that it has made, when there are `blocks` in all."""
        assert self.working_at is not None
        return (now - self.working_at) / (blocks - self.kept)

    def send(self, do: str, **facts: Any) -> None:
        """Tell the runner something about this job."""
        self.group.group.send({"do": do, "job": self.job, "epoch": self.epoch, **facts})


class Groups:
    """Opens groups and finds those that can be used again. Only the scheduler's thread calls."""

    def __init__(self, fleet: Fleet, hear: Callable[[Group, Message], None]) -> None:
        self._fleet, self._hear = fleet, hear
        self._members: dict[Group, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def of(self, group: Group) -> Member | None:
        """What is known of a group; None: it was given up."""
        return self._members.get(group)

    def take(self, devices: Sequence[str], busy: Sequence[Member], now: float) -> Member:
        """A group of just these devices; idle ones that hold some of them are ended.

        Raises:
            UserError: it can't be opened.
        """
        wanted = tuple(devices)
        for member in [m for m in self if m not in busy]:
            if member.devices == wanted:
                return member
            if set(member.devices) & set(wanted):
                self.end(member)
        group = self._fleet.open(wanted, self._hear)
        self._members[group] = Member(group, now, now)
        return self._members[group]

    def end(self, member: Member) -> None:
        """End a group at once."""
        self._members.pop(member.group, None)
        member.group.kill()

    def forget(self, group: Group) -> None:
        """A group has ended by itself."""
        self._members.pop(group, None)


def warmest(
    model: str, devices: tuple[str, ...], idle: Mapping[str, Member], alike: Sequence[str]
) -> tuple[str, ...]:
    """The devices for a group of one, or others of those `alike` where its model is loaded.

    `idle` are the groups that nobody uses, by device.
    """
    if len(devices) > 1:
        return devices
    for name in (*devices, *alike):
        member = idle.get(name)
        if member is not None and member.warm == model and len(member.devices) == 1:
            return (name,)
    return devices
