"""What the queue is measured by: simpler policies, and the best that anybody could reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longtake.scheduler.queue import decide
from longtake.scheduler.queue_placement import Profile
from longtake.scheduler.queue_state import Decision, FleetDevice, JobView, Policy, Priority, Start


def first_come_first_served(
    now: float, jobs: Sequence[JobView], devices: Sequence[FleetDevice]
) -> Decision:
    """Each job in order of arrival, whatever it is, with as many devices as it is through soonest.

    Nobody overtakes, and nobody makes room.
    """
    profile = Profile(now, devices, jobs, Policy())
    starts: list[Start] = []
    for job in sorted((job for job in jobs if job.run is None), key=lambda job: job.arrived):
        place = profile.best(job, thrift=0.0)
        if place is None:
            continue
        if place.start > now:
            break
        starts.append(Start(job.id, place.option, profile.take(place), place.end))
    return Decision(tuple(starts))


def backfilled(now: float, jobs: Sequence[JobView], devices: Sequence[FleetDevice]) -> Decision:
    """In order of arrival, with backfilling and the queue's choice of options, and nothing else."""
    return decide(
        now, [replace(job, priority=Priority.BATCH, deadline=None) for job in jobs], devices
    )


def most_in_time(jobs: Sequence[JobView], devices: int) -> int:
    """How many of a few jobs could meet their deadlines on one node of devices alike.

    By somebody who knows all that will arrive and tries everything, but interrupts nobody: in every
    order and with every option each job is placed at the soonest, on the devices that would else
    stand idle the least. That misses nothing: if jobs are placed in the order in which they start
    in a best schedule, no device is free later than there whenever one starts.
    """
    bound = [job for job in jobs if job.deadline is not None]
    return _search((0.0,) * devices, bound, 0, 0)


def _search(free: tuple[float, ...], jobs: list[JobView], met: int, best: int) -> int:
    best = max(best, met)
    for job in jobs:
        if best >= met + len(jobs):
            return best
        for option in job.options:
            if option.workers > len(free):
                continue
            start = max(free[option.workers - 1], job.arrived)
            end = start + job.seconds(option)
            if end <= job.due:
                idle = sum(each <= start for each in free)
                left = free[: idle - option.workers] + free[idle:]
                after = tuple(sorted((*left, *[end] * option.workers)))
                rest = [other for other in jobs if other is not job]
                best = _search(after, rest, met + 1, best)
    return best
