"""A plan of who runs when, on which devices, with which option: the best of a few.

Jobs are placed one by one in order of service. Where one would miss its deadline, the job of its
class that takes most work is given up for now, itself or one before it (Moore and Hodgson's rule,
which is optimal on one machine): it comes after those of its class that are in time.

How many devices a job should have depends on who else waits. So several plans are made, in which
jobs may get ever more devices than they need to be in time; taken is the one in which most are in
time and then the sum of ends is least. Plans that waste much are looked at only where some would
else be late: they leave no devices for who comes next. A job that is alone is through as soon as
it can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from longtake.scheduler.queue_placement import Place, Profile
from longtake.scheduler.queue_state import JobView, Priority

# The share of its work that must be useful, if a job is to get more devices than it needs.
THRIFTS = (1.0, 0.8)
WASTEFUL = (0.6, 0.0)
GIVEN_UP = 8  # at most so many jobs are given up for another one


@dataclass(frozen=True)
class Placed:
    """A job, its place, and its devices by rank."""

    job: JobView
    place: Place
    devices: tuple[str, ...]


@dataclass
class Plan:
    """Jobs in order with their places, and what is free beside them."""

    profile: Profile
    placed: list[Placed] = field(default_factory=list)

    def put(self, job: JobView, place: Place) -> None:
        """Reserve a place for a job."""
        self.placed.append(Placed(job, place, self.profile.take(place)))

    @property
    def places(self) -> dict[str, Place]:
        """By job."""
        return {each.job.id: each.place for each in self.placed}

    @property
    def ends(self) -> float:
        """The sum of all seconds until a job is through."""
        return sum(each.place.end - self.profile.now for each in self.placed)

    def late(self, hopeless: frozenset[str]) -> tuple[int, int]:
        """How many interactive and batch jobs miss a deadline that they could meet."""
        late = [
            each.job.priority
            for each in self.placed
            if each.place.end > each.job.due and each.job.id not in hopeless
        ]
        return late.count(Priority.INTERACTIVE), late.count(Priority.BATCH)


def best_plan(
    profile: Profile, jobs: Sequence[JobView], aged: int, hopeless: frozenset[str], alone: bool
) -> Plan:
    """The best of a few plans for jobs in order of service, the first `aged` of which have aged.

    `alone`: nobody else waits or runs.
    """

    def plan(thrift: float) -> Plan:
        return arrange(profile, jobs, aged, hopeless, thrift)

    if alone:
        return plan(0.0)
    if not profile.idle:  # none can start: any tells when they might
        return plan(THRIFTS[0])
    best = min(map(plan, THRIFTS), key=lambda each: (each.late(hopeless), each.ends))
    if not any(best.late(hopeless)):
        return best
    return min([best, *map(plan, WASTEFUL)], key=lambda each: each.late(hopeless))


def arrange(
    profile: Profile, jobs: Sequence[JobView], aged: int, hopeless: frozenset[str], thrift: float
) -> Plan:
    """Places for jobs in order of service; those that the fleet has no group for are left out.

    Args:
        profile: is left as it is.
        aged: so many of the first come before all, each with its earliest end.
        hopeless: ids of jobs whose deadlines can't be met.
        thrift: see `THRIFTS`.
    """
    given_up: list[JobView] = []
    while True:
        plan = Plan(profile.copy())
        for job in jobs[:aged]:
            _put_best(plan, job, 0.0)
        rest = jobs[aged:]
        for priority in Priority:
            mates = [job for job in rest if job.priority is priority]
            worst = _arrange_class(plan, mates, given_up, hopeless, thrift)
            if worst is not None:
                given_up.append(worst)
                break
        else:
            return plan


def _arrange_class(
    plan: Plan,
    mates: Sequence[JobView],
    given_up: Sequence[JobView],
    hopeless: frozenset[str],
    thrift: float,
) -> JobView | None:
    """Place the jobs of a class; or find the one that had better be given up first."""
    after = [job for job in mates if job in given_up]
    in_time: list[Placed] = []
    for job in mates:
        if job in after:
            continue
        place = plan.profile.best(job, thrift)
        if place is None:
            continue
        if place.end > job.due and job.id not in hopeless:
            worst = max(in_time, key=lambda each: each.place.work, default=None)
            if worst is not None and worst.place.work > place.work and len(given_up) < GIVEN_UP:
                return worst.job
            after.append(job)
            continue
        plan.put(job, place)
        if job.deadline is not None:
            in_time.append(plan.placed[-1])
    for job in after:
        _put_best(plan, job, thrift)
    return None


def _put_best(plan: Plan, job: JobView, thrift: float) -> None:
    place = plan.profile.best(job, thrift)
    if place is not None:
        plan.put(job, place)
