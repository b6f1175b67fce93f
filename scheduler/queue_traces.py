"""What happens to a fleet: jobs arrive, devices come, go and fail. Some of it by chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, log
from random import Random

from longtake.scheduler.degrees import Degrees
from longtake.scheduler.queue_state import FleetDevice, JobView, Option, Priority

GIB = 2**30


@dataclass(frozen=True)
class Asked:
    """A job that will arrive.

    Attributes:
        job: as it arrives; its `restore` is what each of its groups takes to start.
        blocks: it can stop between these without loss.
        pace: how many times as long as predicted everything takes.
    """

    job: JobView
    blocks: int = 1
    pace: float = 1.0


@dataclass(frozen=True)
class Joins:
    """A device comes, comes back, or is given a notice (`until`)."""

    at: float
    device: FleetDevice


@dataclass(frozen=True)
class Leaves:
    """A device is lost, together with the block that is being made on it.

    The rest of its group is free once that is noticed, `noticed` seconds later.
    """

    at: float
    name: str
    noticed: float = 0.0


@dataclass(frozen=True)
class Trace:
    """Jobs in any order, the devices at the start, and what becomes of these."""

    asked: tuple[Asked, ...]
    devices: tuple[FleetDevice, ...]
    events: tuple[Joins | Leaves, ...] = ()


@dataclass(frozen=True)
class Model:
    """How long videos of a model take.

    Attributes:
        cost: device seconds per second of video, on one device.
        memory: bytes of a worker that is alone; shared by `stages` it needs half of it at least.
        overhead: what each further worker adds to the work, as a share of it.
        most: workers.
    """

    cost: float
    memory: float
    overhead: float
    most: int

    def options(self, seconds: float) -> tuple[Option, ...]:
        """Ways to make a video of so many seconds: on 1, 2, 4 ... workers."""
        counts = [1 << n for n in range(self.most.bit_length()) if 1 << n <= self.most]
        return tuple(self._option(workers, seconds) for workers in counts)

    def _option(self, workers: int, seconds: float) -> Option:
        work = self.cost * seconds * (1 + self.overhead * (workers - 1))
        memory = self.memory * (0.5 + 0.5 / workers)
        return Option(Degrees(ring=workers), work / workers, memory, across=1.2)


@dataclass(frozen=True)
class Demand:
    """Who asks for what; each choice by chance.

    Attributes:
        load: device seconds asked for per device and second, each job on as few devices as can be.
        interactive: the share of jobs.
        lengths: seconds of video, from the shortest to the longest; evenly in their logarithm.
        slack: deadlines leave so many times what the fastest option takes, from least to most;
            interactive jobs' are among the tighter half.
        bound: the share of batch jobs that have a deadline.
        burst: jobs that arrive at once, on average; 1: independently (Poisson).
        restore: seconds that a group takes to start.
        error: how far off predictions are, as the spread of the logarithm of the pace.
    """

    load: float = 0.8
    interactive: float = 0.4
    lengths: tuple[float, float] = (5.0, 120.0)
    slack: tuple[float, float] = (2.0, 12.0)
    bound: float = 0.7
    burst: float = 1.0
    restore: float = 5.0
    error: float = 0.0
    models: tuple[Model, ...] = (
        Model(cost=4.0, memory=20 * GIB, overhead=0.04, most=8),
        Model(cost=30.0, memory=70 * GIB, overhead=0.03, most=16),
    )


@dataclass(frozen=True)
class Mishaps:
    """What happens to devices, by chance.

    Attributes:
        lost_every: seconds between two losses of a device of the fleet, on average.
        back_after: seconds until it is back.
        noticed: seconds until a loss is noticed.
        spot: the share of losses that are told of `notice` seconds before.
    """

    lost_every: float = inf
    back_after: float = 600.0
    noticed: float = 5.0
    spot: float = 0.5
    notice: float = 120.0


def nodes(
    count: int, devices: int = 8, memory: float = 80 * GIB, speed: float = 1.0, name: str = "node"
) -> tuple[FleetDevice, ...]:
    """Devices alike, on nodes of so many."""
    return tuple(
        FleetDevice(f"{name}{node}.{at}", f"{name}{node}", memory, speed)
        for node in range(count)
        for at in range(devices)
    )


def make_trace(
    seed: int,
    requests: int,
    devices: Sequence[FleetDevice],
    demand: Demand | None = None,
    mishaps: Mishaps | None = None,
) -> Trace:
    """The same for the same arguments."""
    demand, mishaps = demand or Demand(), mishaps or Mishaps()
    chance = Random(seed)
    jobs = [_job(chance, f"job{number:05d}", demand) for number in range(requests)]
    work = sum(min(option.work for option in each.job.options) for each in jobs)
    capacity = sum(device.speed for device in devices)
    between = work / requests / (demand.load * capacity)
    arrivals = list(_arrivals(chance, requests, between, demand.burst))
    asked = tuple(_later(each, at) for each, at in zip(jobs, arrivals, strict=True))
    return Trace(asked, tuple(devices), tuple(_mishaps(chance, devices, arrivals[-1], mishaps)))


def _arrivals(chance: Random, requests: int, between: float, burst: float) -> Iterator[float]:
    at = 0.0
    for _ in range(requests):
        yield at
        if chance.random() * burst < 1:
            at += chance.expovariate(1 / (between * burst))


def _job(chance: Random, name: str, demand: Demand) -> Asked:
    shortest, longest = demand.lengths
    seconds = exp(chance.uniform(log(shortest), log(longest)))
    options = chance.choice(demand.models).options(seconds)
    interactive = chance.random() < demand.interactive
    least, most = demand.slack
    slack = chance.uniform(least, (least + most) / 2 if interactive else most)
    fastest = min(option.seconds for option in options)
    due = (
        demand.restore + slack * fastest if interactive or chance.random() < demand.bound else None
    )
    job = JobView(
        name,
        Priority.INTERACTIVE if interactive else Priority.BATCH,
        0.0,
        options,
        deadline=due,
        restore=demand.restore,
    )
    return Asked(job, max(1, round(seconds / 0.75)), exp(chance.gauss(0, demand.error)))


def _later(asked: Asked, at: float) -> Asked:
    job = asked.job
    due = None if job.deadline is None else job.deadline + at
    return replace(asked, job=replace(job, arrived=at, deadline=due))


def _mishaps(
    chance: Random, devices: Sequence[FleetDevice], until: float, mishaps: Mishaps
) -> Iterator[Joins | Leaves]:
    back: dict[str, float] = {}
    at = mishaps.notice
    while mishaps.lost_every < inf:
        at += chance.expovariate(1 / mishaps.lost_every)
        if at > until:
            return
        there = [each for each in devices if back.get(each.name, 0.0) < at - mishaps.notice]
        if not there:
            continue
        device = chance.choice(there)
        if chance.random() < mishaps.spot:
            yield Joins(at - mishaps.notice, replace(device, until=at))
        back[device.name] = at + mishaps.back_after
        yield Leaves(at, device.name, mishaps.noticed)
        yield Joins(at + mishaps.back_after, device)
