"""In which order waiting jobs have their turn, and why none of them waits for ever.

Interactive jobs come before batch jobs. Within a class the earliest deadline comes first; jobs
without one, and those whose deadline can't be met any more, come after these, the oldest first.

**Ageing.** A job that has waited `patience` seconds in all has aged. The aged job that has waited
longest comes before everybody while aged jobs before it hold less than `aged_share` of the devices;
it is reserved for at its earliest end, and an aged job is never preempted.

**What that guarantees.** Let P be the patience, S the longest time that any group holds its
devices, and n the number of aged jobs that wait when a job ages and have waited longer. As long as
runs take no longer than expected, no device is lost, and the fleet has a group for each of these
jobs, the job starts for the last time before it has waited

    P + 2 (n + 1) S

in all its waits, whatever else arrives. For take the aged job that has waited longest. Those aged
before it that run are through within S and none is added, as waiting adds up at one pace for all
and aged jobs don't stop: so within S it is first in order. From then on nobody starts who would
delay its reserved end, which can only come nearer; all that runs is through within another S, so at
the latest then it starts. That happens n + 1 times at most until it is the job's own turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from longtake.scheduler.queue_state import JobView, Policy, Priority

CLASSES = tuple(Priority)


def in_order(
    now: float, jobs: Sequence[JobView], hopeless: frozenset[str], policy: Policy, devices: int
) -> tuple[list[JobView], int]:
    """Waiting jobs in order of service, and how many of them come first because they have aged.

    Args:
        hopeless: ids of jobs that can't meet their deadline any more.
        devices: how many the fleet has.
    """
    waiting = sorted((job for job in jobs if job.run is None), key=lambda job: job.id)
    first = _aged(now, jobs, waiting, policy, devices)
    ahead = {job.id for job in first}
    rest = [job for job in waiting if job.id not in ahead]

    def turn(job: JobView) -> tuple[int, bool, float, float]:
        hope = job.deadline is not None and job.id not in hopeless
        return CLASSES.index(job.priority), not hope, job.due if hope else 0.0, job.arrived

    return [*first, *sorted(rest, key=turn)], len(first)


def has_aged(now: float, job: JobView, policy: Policy) -> bool:
    """Has it waited so long that it comes first, and is not preempted any more?"""
    return (now if job.run is None else job.run.started) >= ages_at(job, policy)


def ages_at(job: JobView, policy: Policy) -> float:
    """When a job that waits has waited for so long."""
    return _since(job) + policy.patience


def _aged(
    now: float,
    jobs: Sequence[JobView],
    waiting: Sequence[JobView],
    policy: Policy,
    devices: int,
) -> list[JobView]:
    """Aged jobs whose turn has come, the one that has waited longest first."""
    running = [job for job in jobs if job.run is not None and has_aged(now, job, policy)]
    first: list[JobView] = []
    asked = 0
    for job in sorted((job for job in waiting if has_aged(now, job, policy)), key=_since):
        held = {
            device
            for other in running
            if other.run is not None and _since(other) <= _since(job)
            for device in other.run.devices
        }
        if len(held) + asked >= policy.aged_share * devices:
            break
        first.append(job)
        asked += min(option.workers for option in job.options)
    return first


def _since(job: JobView) -> float:
    """The instant from which on it would have waited, had it waited without a break."""
    return job.arrived + job.held
