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
from longtake.scheduler.queue_state import FleetDevice, JobView, Option, Policy

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

    def soonest(self, now: float, devices: int, seconds: float) -> tuple[float, int] | None:
        """When so many are free for so long, and how many more are then."""
        if len(self.cells) < devices:
            return None
        if len(self.gaps) >= devices:
            idle = len(self.gaps) - bisect_left(self.gaps, now + seconds)
            if idle >= devices:
                return now, idle - devices
        start = self.frees[devices - 1]
        return start, bisect_right(self.frees, start) - devices


@dataclass(frozen=True)
class _Fold:
    """How ranks come to devices.

    Attributes:
        devices: of a group, with up to `ranks` ranks each.
        alike: for each speed the pools of that speed that have the memory.
        at_least: for each speed those that are no slower.
    """

    devices: int
    ranks: int
    alike: tuple[tuple[float, tuple[int, ...]], ...]
    at_least: tuple[tuple[float, tuple[int, ...]], ...]


class Profile:
    """What is free and when."""

    def __init__(
        self,
        now: float,
        devices: Sequence[FleetDevice],
        jobs: Sequence[JobView],
        policy: Policy,
        stopped: Collection[str] = (),
    ) -> None:
        """`stopped`: ids of running jobs that end at their next tick."""
        self.now = now
        self._sharing = policy.sharing
        self._names = [device.name for device in devices]
        taken = dict(_taken(now, jobs, stopped))
        pools: dict[tuple[float, float, str], list[_Cell]] = {}
        for index, device in enumerate(devices):
            if device.until - now > policy.drain:
                free = taken.get(device.name, now)
                cell = _Cell(free, inf if free <= now else BUSY, index)
                pools.setdefault((device.speed, device.memory, device.node), []).append(cell)
        self._pools = [_Pool(tuple(sorted(cells))) for cells in pools.values()]
        self._kinds: dict[tuple[float, float], tuple[int, ...]] = {}
        for at, (speed, memory, _) in enumerate(pools):
            self._kinds[speed, memory] = (*self._kinds.get((speed, memory), ()), at)
        self._folds: dict[tuple[int, float, bool], _Fold | None] = {}
        self._merged: dict[tuple[int, ...], _Pool] = {}

    def copy(self) -> Profile:
        """One that can be changed alone."""
        other = object.__new__(Profile)
        own = {"_pools": list(self._pools), "_merged": dict(self._merged)}
        other.__dict__ = {**self.__dict__, **own}
        return other

    @property
    def idle(self) -> bool:
        """Is any device free now?"""
        return any(pool.gaps for pool in self._pools)

    def fits(self, option: Option, begun: bool) -> bool:
        """Has the fleet a group for it? Ranks may share devices where the job has begun."""
        return self._fold(option, begun) is not None

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
            if best_key < (False, max(option.work, enough)):
                continue  # it can't be better than what is in time with less work
            fold = self._fold(option, job.begun)
            if fold is None:
                continue
            for pools, start, end, spare in self._places(job, option, fold):
                across = len(pools) > 1
                work = option.work * (option.across if across else 1.0)
                key = (end > job.due, max(work, enough), end, across, spare)
                if key < best_key and not (at_once and start > self.now):
                    best = Place(option, start, end, fold.devices, fold.ranks, pools, work)
                    best_key = key
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
        self._merged.clear()
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

    def _fold(self, option: Option, begun: bool) -> _Fold | None:
        """How to get a group's ranks onto devices; None if there are too few."""
        key = (option.workers, option.memory, begun)
        if key not in self._folds:
            most = option.workers if begun and self._sharing else 1
            folds = (self._folded(option, ranks) for ranks in range(1, most + 1))
            self._folds[key] = next((fold for fold in folds if fold is not None), None)
        return self._folds[key]

    def _folded(self, option: Option, ranks: int) -> _Fold | None:
        kinds = {
            speed: tuple(
                index
                for (each, memory), pools in self._kinds.items()
                if each == speed and memory >= ranks * option.memory
                for index in pools
            )
            for speed in sorted({speed for speed, _ in self._kinds}, reverse=True)
        }
        devices = -(-option.workers // ranks)
        pools: tuple[int, ...] = ()
        groups: list[tuple[float, tuple[int, ...]]] = []
        for speed, alike in kinds.items():
            pools += alike
            groups.append((speed, pools))
        if sum(len(self._pools[index].cells) for index in pools) < devices:
            return None
        return _Fold(devices, ranks, tuple(kinds.items()), tuple(groups))

    def _places(
        self, job: JobView, option: Option, fold: _Fold
    ) -> Iterator[tuple[tuple[int, ...], float, float, int]]:
        """Pools, start, end, devices to spare: for each speed the soonest on one node, and on some.

        Several nodes are looked at only if no single one is free now.
        """
        at_once = False
        for speed, pools in fold.alike:
            seconds = job.seconds(option, speed / fold.ranks)
            best: tuple[float, int, int] | None = None
            for index in pools:
                found = self._pools[index].soonest(self.now, fold.devices, seconds)
                if found is not None and (best is None or found < best[:2]):
                    best = (*found, index)
            if best is not None:
                start, spare, index = best
                at_once = at_once or start <= self.now
                yield (index,), start, start + seconds, spare
        for speed, pools in () if at_once else fold.at_least:
            seconds = job.seconds(option, speed / fold.ranks, across=True)
            found = self._merge(pools).soonest(self.now, fold.devices, seconds)
            if len(pools) > 1 and found is not None:
                yield pools, found[0], found[0] + seconds, found[1]

    def _merge(self, pools: tuple[int, ...]) -> _Pool:
        """As if they were on one node."""
        if pools not in self._merged:
            cells = chain.from_iterable(self._pools[index].cells for index in pools)
            self._merged[pools] = _Pool(tuple(sorted(cells)))
        return self._merged[pools]


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
