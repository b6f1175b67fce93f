"""What becomes of many jobs on a fleet whose devices come, go and fail: the queue, replayed.

Discrete events over the very `decide` that the central scheduler asks. Jobs run in blocks and keep
those that are finished; time may pass otherwise than predicted, and the queue is not told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import ceil, floor, inf

from longtake.scheduler.queue import decide
from longtake.scheduler.queue_state import (
    Decision,
    FleetDevice,
    JobView,
    Priority,
    Run,
    Start,
)
from longtake.scheduler.queue_traces import Asked, Joins, Leaves, Trace

Decide = Callable[[float, Sequence[JobView], Sequence[FleetDevice]], Decision]
NEARLY = 1e-6  # of a block: what rounding leaves of it


@dataclass
class Record:
    """What became of a job.

    Attributes:
        started: at first; infinite if never.
        ended: infinite if it was not finished.
        waited: seconds without devices, in all.
        preempted: how many times it was stopped, for others or because a device had to leave.
        lost: how many groups it lost.
        late_since: when it was first told that it can't meet its deadline; infinite if never.
    """

    job: JobView
    started: float = inf
    ended: float = inf
    waited: float = 0.0
    preempted: int = 0
    lost: int = 0
    late_since: float = inf

    @property
    def in_time(self) -> bool:
        """Through by its deadline; or at all, without one."""
        return self.ended < inf and self.ended <= self.job.due


@dataclass(frozen=True)
class Outcome:
    """A trace replayed.

    Attributes:
        records: in order of arrival.
        runs: every start and its instant, in order of service.
        busy: device seconds for which groups had devices.
        there: device seconds for which devices were there, from the first arrival to the last end.
    """

    records: tuple[Record, ...]
    runs: tuple[tuple[float, Start], ...]
    busy: float
    there: float

    @property
    def order(self) -> tuple[str, ...]:
        """Ids in the order in which jobs started for the first time."""
        return tuple(dict.fromkeys(start.job for _, start in self.runs))

    @property
    def utilisation(self) -> float:
        """The share of the devices' time for which groups had them, 0 to 1."""
        return self.busy / self.there if self.there else 0.0

    def goodput(self, priority: Priority | None = None) -> float:
        """The share of jobs with a deadline, of a class or all, that met it; 1 if none has one."""
        bound = [record for record in self.of(priority) if record.job.deadline is not None]
        return sum(record.in_time for record in bound) / len(bound) if bound else 1.0

    def longest_wait(self, priority: Priority | None = None) -> float:
        """Seconds that a job of a class, or any, waited at most."""
        return max((record.waited for record in self.of(priority)), default=0.0)

    def of(self, priority: Priority | None) -> list[Record]:
        """The jobs of a class, or all."""
        return [each for each in self.records if priority in (None, each.job.priority)]


def simulate(trace: Trace, ask: Decide = decide) -> Outcome:
    """Replay a trace until all jobs are through, or nothing happens any more.

    Raises:
        ValueError: a decision can't be carried out, such as a group on devices that are taken.
    """
    return _Replay(trace, ask).run()


@dataclass
class _Group:
    """A job's run as it really is."""

    start: Start
    began: float
    restore: float
    block: float  # seconds
    missing: int  # blocks
    broken: bool = False
    stopping: bool = False

    @property
    def end(self) -> float:
        return self.began + self.restore + self.missing * self.block

    def made(self, now: float) -> int:
        """Blocks that are finished."""
        passed = (now - self.began - self.restore) / self.block
        return max(0, min(self.missing, floor(passed + NEARLY)))

    def tick(self, now: float) -> float:
        """When the block that is being made is finished; while it starts, now."""
        passed = (now - self.began - self.restore) / self.block
        whole = ceil(passed - NEARLY)
        return max(now, self.began + self.restore + whole * self.block) if whole > 0 else now

    def view(self, now: float) -> Run:
        start = self.start
        stops = self.tick(now)
        return Run(
            start.option, start.devices, self.began, start.ends, stops, stopping=self.stopping
        )


@dataclass
class _Job:
    asked: Asked
    record: Record
    made: int = 0
    group: _Group | None = None
    waiting: JobView = field(init=False)  # as the queue saw it when it last waited

    def __post_init__(self) -> None:
        self.waiting = self.asked.job

    def view(self, now: float) -> JobView:
        return (
            self.waiting if self.group is None else replace(self.waiting, run=self.group.view(now))
        )


class _Replay:
    def __init__(self, trace: Trace, ask: Decide) -> None:
        self._ask = ask
        self._jobs = {each.job.id: _Job(each, Record(each.job)) for each in trace.asked}
        if len(self._jobs) < len(trace.asked):
            raise ValueError("two jobs have one id")
        self._here: dict[str, _Job] = {}  # that wait or run
        self._missing = len(self._jobs)
        self._devices = {device.name: device for device in trace.devices}
        self._taken: dict[str, str] = {}  # the job that has a device
        self._runs: list[tuple[float, Start]] = []
        self._busy = self._there = 0.0
        self._wakes: set[float] = set()
        self._numbers = count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        for job in self._jobs.values():
            self._at(job.asked.job.arrived, partial(self._arrive, job))
        for event in trace.events:
            if isinstance(event, Joins):
                self._at(event.at, partial(self._join, event))
            else:
                self._at(event.at, partial(self._leave, event))

    def run(self) -> Outcome:
        last = min((job.asked.job.arrived for job in self._jobs.values()), default=0.0)
        while self._events and self._missing:
            now = self._events[0][0]
            if now > last:
                self._there += len(self._devices) * (now - last)
                self._busy += len(self._taken) * (now - last)
                last = now
            while self._events and self._events[0][0] == now:
                heappop(self._events)[2](now)
            self._carry_out(now)
        records = sorted(self._jobs.values(), key=lambda job: job.asked.job.arrived)
        runs = tuple(self._runs)
        return Outcome(tuple(job.record for job in records), runs, self._busy, self._there)

    def _at(self, at: float, happen: Callable[[float], None]) -> None:
        heappush(self._events, (at, next(self._numbers), happen))

    def _carry_out(self, now: float) -> None:
        views = [job.view(now) for job in self._here.values()]
        decision = self._ask(now, views, list(self._devices.values()))
        for start in decision.starts:
            self._start(start, now)
        for name in decision.preempts:
            self._preempt(self._here[name], now)
        for name in decision.late:
            record = self._here[name].record
            record.late_since = min(record.late_since, now)
        if decision.again < inf and decision.again not in self._wakes:
            self._wakes.add(decision.again)
            self._at(decision.again, lambda _: None)

    def _arrive(self, job: _Job, now: float) -> None:
        self._here[job.asked.job.id] = job

    def _start(self, start: Start, now: float) -> None:
        job = self._here[start.job]
        devices = set(start.devices)
        if job.group is not None or devices & set(self._taken) or devices - set(self._devices):
            raise ValueError(f"at {now:g} s this can't be done: {start}")
        self._taken |= dict.fromkeys(devices, start.job)
        pace, missing = job.asked.pace, job.asked.blocks - job.made
        restore = job.waiting.restore
        block = (start.ends - now - restore) / missing
        job.group = group = _Group(start, now, restore * pace, block * pace, missing)
        job.record.started = min(job.record.started, now)
        job.record.waited = job.waiting.waited(now)
        self._runs.append((now, start))
        self._at(group.end, partial(self._stop, job, group))

    def _preempt(self, job: _Job, now: float) -> None:
        group = job.group
        if group is None or group.stopping:
            raise ValueError(f"{job.asked.job.id} has nothing to stop at {now:g} s")
        group.stopping = True
        job.record.preempted += 1
        self._at(min(group.tick(now), group.end), partial(self._stop, job, group))

    def _stop(self, job: _Job, group: _Group, now: float) -> None:
        """It is through, or at the tick at which it was to stop."""
        if job.group is group and not group.broken:
            self._free(job, group, group.made(now), now)

    def _join(self, event: Joins, now: float) -> None:
        self._devices[event.device.name] = event.device

    def _leave(self, event: Leaves, now: float) -> None:
        del self._devices[event.name]
        job = self._jobs.get(self._taken.pop(event.name, ""))
        if job is not None and job.group is not None and not job.group.broken:
            job.group.broken = True
            job.record.lost += 1
            free = partial(self._free, job, job.group, job.group.made(now))
            self._at(now + event.noticed, free)

    def _free(self, job: _Job, group: _Group, made: int, now: float) -> None:
        for name in group.start.devices:
            if self._taken.get(name) == job.asked.job.id:
                del self._taken[name]
        job.group = None
        job.made += made
        if job.made == job.asked.blocks:
            del self._here[job.asked.job.id]
            job.record.ended = now
            self._missing -= 1
            return
        job.waiting = replace(
            job.waiting,
            options=(group.start.option,) if job.made else job.asked.job.options,
            remaining=1 - job.made / job.asked.blocks,
            begun=job.made > 0,
            held=job.waiting.held + now - group.began,
        )
