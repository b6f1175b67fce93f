"""Which running jobs make room for one that waits.

A batch job makes room for an interactive one that can't start now and would else be late, or has no
deadline that it could wait for; and for another batch job that would else be late, if fewer are
late then. It stops at its next tick and keeps its work: what it loses is what is
under way then, and the way back there. Nothing is preempted that would be through sooner than that
pays, that has aged, or that is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from longtake.scheduler.queue_order import has_aged
from longtake.scheduler.queue_placement import Profile
from longtake.scheduler.queue_plan import Plan, arrange
from longtake.scheduler.queue_state import FleetDevice, JobView, Policy, Priority

MakeProfile = Callable[[Collection[str]], Profile]
Order = Callable[[Sequence[JobView]], tuple[list[JobView], int]]
MOST = 4  # so many jobs make room for a batch job at most


def drained(
    now: float, jobs: Sequence[JobView], devices: Sequence[FleetDevice], policy: Policy
) -> dict[str, str]:
    """Running jobs whose devices are about to leave before they would be through, and why."""
    leaving = {each.name: each.until for each in devices if each.until - now <= policy.drain}
    found: dict[str, str] = {}
    for job in jobs:
        if job.run is None or job.run.stopping:
            continue
        for name in job.run.devices:
            if name in leaving and leaving[name] < job.run.ends:
                found[job.id] = f"{name} leaves in {leaving[name] - now:.0f} s"
    return found


@dataclass(frozen=True)
class Preemption:
    """Looks for room.

    Attributes:
        hopeless: ids of jobs whose deadlines can't be met.
        make_profile: what is free if running jobs of these ids stop at their next ticks.
        order: waiting jobs in order of service, and how many come first because they have aged.
    """

    now: float
    hopeless: frozenset[str]
    policy: Policy
    make_profile: MakeProfile
    order: Order

    def stops(
        self, jobs: Sequence[JobView], plan: Plan, stopped: Collection[str]
    ) -> dict[str, str]:
        """Running jobs to stop, besides those that are `stopped` anyway, and why.

        Args:
            plan: of the jobs that wait, without any room made.
        """
        found: dict[str, str] = {}
        victims = [job for job in self._victims(jobs) if job.id not in stopped]
        for job in [each.job for each in plan.placed]:
            if victims and self._needs(job, plan):
                trial = _Trial(self, job, plan, jobs, {*stopped, *found})
                chosen = trial.room(victims)
                if chosen:
                    plan, jobs = trial.plan(chosen), trial.requeued(chosen)
                    found |= {victim.id: f"{job.id} can't wait" for victim in chosen}
                    victims = [victim for victim in victims if victim not in chosen]
        return found

    def hopes(self, job: JobView) -> bool:
        """Has it a deadline that it can meet?"""
        return job.deadline is not None and job.id not in self.hopeless

    def _victims(self, jobs: Sequence[JobView]) -> list[JobView]:
        """Batch jobs that may be stopped, those first that lose least and can wait longest."""
        found = [
            job
            for job in jobs
            if job.run is not None
            and job.priority is Priority.BATCH
            and not job.run.stopping
            and not has_aged(self.now, job, self.policy)
            and job.run.ends - job.run.stops > _loss(job)
        ]
        return sorted(found, key=lambda job: (_loss(job), -job.due, -job.arrived, job.id))

    def _needs(self, job: JobView, plan: Plan) -> bool:
        place = plan.places.get(job.id)
        if place is None:  # those who make room came before it
            return False
        if self.hopes(job):
            return place.end > job.due
        return job.priority is Priority.INTERACTIVE and place.start > self.now


@dataclass(frozen=True)
class _Trial:
    """Room for one job, in place of a plan without."""

    about: Preemption
    job: JobView
    without: Plan
    jobs: Sequence[JobView]
    stopped: Collection[str]

    def room(self, victims: Sequence[JobView]) -> list[JobView]:
        """Victims that are enough and each of which is needed; none if it doesn't pay."""
        if self.job.priority is Priority.BATCH:
            victims = [v for v in victims if _slack(v) > 0][:MOST]
        size = 1
        while not self._is_enough(victims[:size]):
            if size >= len(victims):
                return []
            size *= 2
        chosen = list(victims[:size])
        for victim in victims[:size]:
            fewer = [each for each in chosen if each is not victim]
            if self._is_enough(fewer):
                chosen = fewer
        return chosen

    def plan(self, chosen: Sequence[JobView]) -> Plan:
        """If these make room."""
        profile = self.about.make_profile({*self.stopped, *(victim.id for victim in chosen)})
        ordered, aged = self.about.order(self.requeued(chosen))
        first = ordered[: self.about.policy.reserved + len(chosen)]
        return arrange(profile, first, aged, self.about.hopeless, thrift=1.0)

    def requeued(self, chosen: Sequence[JobView]) -> list[JobView]:
        """All jobs, with these among those that wait."""
        return [_requeued(self.about.now, job) if job in chosen else job for job in self.jobs]

    def _is_enough(self, chosen: Sequence[JobView]) -> bool:
        plan = self.plan(chosen)
        place = plan.places.get(self.job.id)
        if place is None:
            return False
        if self.about.hopes(self.job) and place.end <= self.job.due:
            return plan.late(self.about.hopeless) < self.without.late(self.about.hopeless)
        if self.job.priority is Priority.BATCH:
            return False
        saved = self.without.places[self.job.id].start - place.start
        return saved > sum(map(_loss, chosen))


def _requeued(now: float, job: JobView) -> JobView:
    """A running job as it will wait."""
    run = job.run
    assert run is not None
    whole = run.ends - run.started - job.restore
    left = (run.ends - run.stops + run.lost) / whole if whole > 0 else 1.0
    return replace(
        job,
        run=None,
        options=(run.option,),
        begun=True,
        remaining=job.remaining * min(1.0, left),
        held=job.held + now - run.started,
    )


def _slack(job: JobView) -> float:
    """Seconds that a running job could stand still and be in time."""
    assert job.run is not None
    return job.due - job.run.ends - _loss(job)


def _loss(job: JobView) -> float:
    """Seconds of its group that stopping it costs."""
    assert job.run is not None
    return job.run.lost + job.restore
