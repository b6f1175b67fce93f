"""Which devices a job gets, and when: whole nodes rather than parts, holes as small as they can be.

A profile knows of each device until when it is taken, by runs and by the jobs placed so far; and,
if it is free now but wanted later, until when. So a later job may run before an earlier one's
place, never into it: backfilling with reservations (Lifka's EASY, but not for the first job alone).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import inf
from typing import NamedTuple

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
        work: device seconds of the whole job so.
    """

    option: Option
    start: float
    end: float
    devices: int
    ranks: int
    pools: tuple[int, ...]
    work: float


class _Cell(NamedTuple):
    """A device: free for good from `free` on, and before that from now to `gap`."""

    free: float
    gap: float
    at: int  # in the fleet


@dataclass(frozen=True)
class _Pool:
    """Devices alike of one node, the soonest free first."""

    cells: tuple[_Cell, ...]

    @cached_property
    def frees(self) -> list[float]:
        return [cell.free for cell in self.cells]

    @cached_property
    def gaps(self) -> list[float]:
        return sorted(cell.gap for cell in self.cells if cell.gap > BUSY)

    def idle(self, until: float) -> int:
        """How many are free from now to an instant."""
        return len(self.gaps) - bisect_left(self.gaps, until)

    def soonest(self, now: float, devices: int, seconds: float) -> tuple[float, int] | None:
        """When so many are free for so long, and how many more are then."""
        if len(self.cells) < devices:
            return None
        idle = self.idle(now + seconds) if self.gaps else 0
        if idle >= devices:
            return now, idle - devices
        start = self.frees[devices - 1]
        return start, bisect_right(self.frees, start) - devices


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
        pools: dict[tuple[float, float, str], list[_Cell]] = {}
        for index, device in enumerate(devices):
            if device.until - now > drain:
                free = taken.get(device.name, now)
                cell = _Cell(free, inf if free <= now else BUSY, index)
                pools.setdefault((device.speed, device.memory, device.node), []).append(cell)
        self._pools = [_Pool(tuple(sorted(cells))) for cells in pools.values()]
        self._kinds: dict[tuple[float, float], tuple[int, ...]] = {}
        for at, (speed, memory, _) in enumerate(pools):
            self._kinds[speed, memory] = (*self._kinds.get((speed, memory), ()), at)
        self._folds: dict[tuple[int, float, bool], tuple[int, int] | None] = {}

    def copy(self) -> Profile:
        """One that can be changed alone."""
        other = object.__new__(Profile)
        other.__dict__ = {**self.__dict__, "_pools": list(self._pools)}
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

    def best(self, job: JobView, thrift: float, at_once: bool = False) -> Place | None:
        """Where and when a job had best run; None if it can't.

        In time if possible, with little work, then soon, on few nodes, and leaving big holes.

        Args:
            thrift: the share of its work that must be useful for it to get more devices than it
                needs. 1: it gets as few as it can; 0: as many as let it end soonest.
            at_once: only where it could begin now.
        """
        enough = min(option.work for option in job.options) / thrift if thrift else inf
        best: Place | None = None
        best_key: tuple[float, ...] = (inf,)
        for option in job.options:
            for place, spare in self._places(job, option):
                late = place.end > job.due
                key = (late, max(place.work, enough), place.end, len(place.pools) > 1, spare)
                if key < best_key and not (at_once and place.start > self.now):
                    best, best_key = place, key
        return best

    def take(self, place: Place) -> tuple[str, ...]:
        """Reserve a place; the devices by rank."""
        at_once = place.start <= self.now
        found: list[Sequence[_Cell]] = []
        for index in place.pools:
            cells = self._pools[index].cells
            if at_once:  # the shortest gaps that suffice
                found.append(sorted((c for c in cells if c.gap >= place.end), key=lambda c: c.gap))
            else:  # those that would stand idle the least until then
                found.append([c for c in cells if c.free <= place.start][::-1])
        names: list[str] = []
        for at, count in _fewest(found, place.devices):
            chosen, index = found[at][:count], place.pools[at]
            left = [cell for cell in self._pools[index].cells if cell not in chosen]
            left += [_filled(cell, place, at_once) for cell in chosen]
            self._pools[index] = _Pool(tuple(sorted(left)))
            names += [self._names[i] for i in sorted(cell.at for cell in chosen)]
        if place.ranks == 1:
            return tuple(names)
        ranks = shares(place.option.workers, len(names))
        return tuple(name for name, part in zip(names, ranks, strict=True) for _ in part.frames())

    def _count(self, memory: float) -> int:
        return sum(
            len(self._pools[at].cells)
            for (_, each), pools in self._kinds.items()
            if each >= memory
            for at in pools
        )

    def _places(self, job: JobView, option: Option) -> Iterator[tuple[Place, int]]:
        """For each kind of device the best place on one node, and those on several."""
        fold = self.fold(option, job.begun)
        if fold is None:
            return
        devices, ranks = fold
        kinds = [kind for kind in self._kinds.items() if kind[0][1] >= ranks * option.memory]
        at_once = False
        for (speed, _), pools in kinds:
            seconds = job.seconds(option, speed / ranks)
            best: tuple[float, int, int] | None = None
            for index in pools:
                found = self._pools[index].soonest(self.now, devices, seconds)
                if found is not None and (best is None or (*found, index) < best):
                    best = (*found, index)
            if best is not None:
                start, spare, index = best
                at_once = at_once or start <= self.now
                end = start + seconds
                yield Place(option, start, end, devices, ranks, (index,), option.work), spare
        if at_once:
            return
        for speed in {speed for (speed, _), _ in kinds}:
            fast = [index for (each, _), pools in kinds if each >= speed for index in pools]
            place = self._across(job, option, devices, ranks, speed, tuple(fast))
            if place is not None:
                yield place, 0

    def _across(
        self,
        job: JobView,
        option: Option,
        devices: int,
        ranks: int,
        speed: float,
        indices: tuple[int, ...],
    ) -> Place | None:
        """The soonest place on several nodes."""
        pools = [self._pools[index] for index in indices]
        if len(pools) == 1 or sum(len(pool.cells) for pool in pools) < devices:
            return None
        seconds = job.seconds(option, speed / ranks, across=True)
        if sum(pool.idle(self.now + seconds) for pool in pools) >= devices:
            start = self.now
        else:
            start = sorted(chain.from_iterable(pool.frees for pool in pools))[devices - 1]
        work = option.work * option.across
        return Place(option, start, start + seconds, devices, ranks, indices, work)


def _taken(
    now: float, jobs: Sequence[JobView], stopped: Collection[str]
) -> Iterator[tuple[str, float]]:
    for job in jobs:
        if job.run is not None:
            stops = job.run.stopping or job.id in stopped
            end = min(job.run.stops, job.run.ends) if stops else job.run.ends
            for name in job.run.devices:
                yield name, max(end, now + OVERDUE)


def _fewest(found: Sequence[Sequence[_Cell]], devices: int) -> Iterator[tuple[int, int]]:
    """Which pools to take how many from: the fullest, and for the rest the one it fits best."""
    left = sorted(range(len(found)), key=lambda at: -len(found[at]))
    while devices > 0:
        enough = [at for at in left if len(found[at]) >= devices]
        at = enough[-1] if enough else left[0]
        left.remove(at)
        count = min(devices, len(found[at]))
        devices -= count
        yield at, count


def _filled(cell: _Cell, place: Place, at_once: bool) -> _Cell:
    if not at_once:
        return _Cell(place.end, min(cell.gap, place.start), cell.at)
    return _Cell(place.end if cell.gap == inf else cell.free, BUSY, cell.at)
