"""Which devices a job gets, and when: whole nodes rather than parts, holes as small as they can be.

A profile knows of each device until when it is taken, by runs and by the jobs placed so far; and,
if it is free now but wanted later, until when. So a later job may run before an earlier one's
place, never into it: backfilling with reservations (Lifka's EASY, but not for the first job alone).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf

from longtake.scheduler.degrees import shares
from longtake.scheduler.queue_state import FleetDevice, JobView, Option

OVERDUE = 1.0  # seconds: a run that should be through is expected to be by then
BUSY = -inf


@dataclass(frozen=True)
class Place:
    """A group in time.

    Attributes:
        start, end: instants.
        devices: how many; each has up to `ranks` ranks.
        pools: indices of those that it may take devices from.
        spare: how many devices of these are left over at its start.
    """

    option: Option
    start: float
    end: float
    devices: int
    ranks: int
    pools: tuple[int, ...]
    spare: int

    @property
    def work(self) -> float:
        """Device seconds, longer ones where it is spread over nodes."""
        return self.option.work * (self.option.across if len(self.pools) > 1 else 1.0)


@dataclass(frozen=True, order=True)
class _Cell:
    """A device: free for good from `free` on, and before that from now to `gap`."""

    free: float
    gap: float
    index: int  # in the fleet


@dataclass
class _Pool:
    """Devices alike of one node."""

    memory: float
    speed: float
    cells: list[_Cell]

    def __post_init__(self) -> None:
        self.settle()

    def settle(self) -> None:
        self.cells.sort()
        self.frees = [cell.free for cell in self.cells]
        self.gaps = sorted(cell.gap for cell in self.cells if cell.gap > BUSY)

    def copy(self) -> _Pool:
        return _Pool(self.memory, self.speed, list(self.cells))

    def idle(self, until: float) -> int:
        """How many are free from now to an instant."""
        return len(self.gaps) - bisect_left(self.gaps, until)


class Profile:
    """What is free and when."""

    def __init__(
        self,
        now: float,
        devices: Sequence[FleetDevice],
        jobs: Sequence[JobView],
        drain: float = 0.0,
        stopped: Collection[str] = (),
    ) -> None:
        """`stopped`: ids of running jobs that end at their next tick.

        Devices that leave within `drain` seconds are not used.
        """
        self.now = now
        self._names = [device.name for device in devices]
        taken = dict(_taken(now, jobs, stopped))
        pools: dict[tuple[str, float, float], list[_Cell]] = {}
        for index, device in enumerate(devices):
            if device.until - now > drain:
                free = taken.get(device.name, now)
                cell = _Cell(free, inf if free <= now else BUSY, index)
                pools.setdefault((device.node, device.memory, device.speed), []).append(cell)
        self._pools = [_Pool(memory, speed, cells) for (_, memory, speed), cells in pools.items()]
        self._folds: dict[tuple[int, float, bool], tuple[int, int] | None] = {}

    def copy(self) -> Profile:
        """One that can be changed alone."""
        other = object.__new__(Profile)
        other.now, other._names, other._folds = self.now, self._names, self._folds
        other._pools = [pool.copy() for pool in self._pools]
        return other

    @property
    def idle(self) -> bool:
        """Is any device free now?"""
        return any(pool.gaps for pool in self._pools)

    def fold(self, option: Option, begun: bool) -> tuple[int, int] | None:
        """Devices of a group and ranks on each; None if the fleet has no group for the option.

        Ranks share devices where the job has begun, and no more devices are left.
        """
        key = (option.workers, option.memory, begun)
        if key not in self._folds:
            most = option.workers if begun else 1
            self._folds[key] = next(
                (
                    (-(-option.workers // ranks), ranks)
                    for ranks in range(1, most + 1)
                    if self._count(ranks * option.memory) >= -(-option.workers // ranks)
                ),
                None,
            )
        return self._folds[key]

    def places(self, job: JobView) -> Iterator[Place]:
        """Where and when it could run: of each option and each pool the soonest."""
        for option in job.options:
            fold = self.fold(option, job.begun)
            if fold is None:
                continue
            fit = [
                index
                for index, pool in enumerate(self._pools)
                if pool.memory >= fold[1] * option.memory
            ]
            soonest = inf
            for index in fit:
                place = self._place(job, option, fold, (index,))
                if place is not None:
                    soonest = min(soonest, place.start)
                    yield place
            if soonest > self.now and len(fit) > 1:
                for speed in {self._pools[index].speed for index in fit}:
                    fast = tuple(index for index in fit if self._pools[index].speed >= speed)
                    place = self._place(job, option, fold, fast)
                    if place is not None:
                        yield place

    def take(self, place: Place) -> tuple[str, ...]:
        """Reserve a place; the devices by rank."""
        at_once = place.start <= self.now
        found: list[list[_Cell]] = []
        for index in place.pools:
            cells = self._pools[index].cells
            if at_once:  # the shortest gaps that suffice
                legal = sorted((c for c in cells if c.gap >= place.end), key=lambda c: c.gap)
            else:  # those that would stand idle the least until then
                legal = [c for c in cells if c.free <= place.start][::-1]
            found.append(legal)
        names: list[str] = []
        missing = place.devices
        for at in _fewest(found, missing):
            chosen = set(found[at][:missing])
            missing -= len(chosen)
            pool = self._pools[place.pools[at]]
            pool.cells = [
                _filled(cell, place, at_once) if cell in chosen else cell for cell in pool.cells
            ]
            pool.settle()
            names += [self._names[index] for index in sorted(cell.index for cell in chosen)]
        ranks = shares(place.option.workers, len(names))
        return tuple(name for name, part in zip(names, ranks, strict=True) for _ in part.frames())

    def _count(self, memory: float) -> int:
        return sum(len(pool.cells) for pool in self._pools if pool.memory >= memory)

    def _place(
        self, job: JobView, option: Option, fold: tuple[int, int], indices: tuple[int, ...]
    ) -> Place | None:
        devices, ranks = fold
        pools = [self._pools[index] for index in indices]
        if sum(len(pool.cells) for pool in pools) < devices:
            return None
        speed = min(pool.speed for pool in pools) / ranks
        seconds = job.seconds(option, speed, across=len(pools) > 1)
        idle = sum(pool.idle(self.now + seconds) for pool in pools)
        if idle >= devices:
            end = self.now + seconds
            return Place(option, self.now, end, devices, ranks, indices, idle - devices)
        frees = pools[0].frees if len(pools) == 1 else sorted(chain(*(p.frees for p in pools)))
        start = frees[devices - 1]
        spare = bisect_right(frees, start) - devices
        return Place(option, start, start + seconds, devices, ranks, indices, spare)


def _taken(
    now: float, jobs: Sequence[JobView], stopped: Collection[str]
) -> Iterator[tuple[str, float]]:
    for job in jobs:
        if job.run is not None:
            stops = job.run.stopping or job.id in stopped
            end = min(job.run.stops, job.run.ends) if stops else job.run.ends
            for name in job.run.devices:
                yield name, max(end, now + OVERDUE)


def _fewest(found: Sequence[Sequence[_Cell]], devices: int) -> Iterator[int]:
    """Which pools to take from: the fullest ones, and for the rest the one it fits best."""
    left = sorted(range(len(found)), key=lambda at: -len(found[at]))
    while devices > 0:
        enough = [at for at in left if len(found[at]) >= devices]
        at = enough[-1] if enough else left[0]
        left.remove(at)
        devices -= min(devices, len(found[at]))
        yield at


def _filled(cell: _Cell, place: Place, at_once: bool) -> _Cell:
    if not at_once:
        return _Cell(place.end, min(cell.gap, place.start), cell.index)
    return _Cell(place.end if cell.gap == inf else cell.free, BUSY, cell.index)
