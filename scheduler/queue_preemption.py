"""Which running jobs make room for one that somebody waits for.

A batch job is preempted for an interactive one alone, and only if that could not start now and
would else be late, or has no deadline that it could wait for. The job stops at its next tick and
keeps its work; what it loses is the way back there. Nothing is preempted that is through sooner
than that pays, that has aged, or that is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from longtake.scheduler.queue_order import has_aged
from longtake.scheduler.queue_placement import Place, Profile
from longtake.scheduler.queue_plan import arrange
from longtake.scheduler.queue_state import FleetDevice, JobView, Policy, Priority

MakeProfile = Callable[[Collection[str]], Profile]


@dataclass(frozen=True)
class _Seeker:
    """The last of some jobs in order of service, of which so many have aged."""

    ordered: Sequence[JobView]
    aged: int
    hopeless: frozenset[str]
    make_profile: MakeProfile

    def place(self, stopped: Collection[str]) -> Place | None:
        """Its place if running jobs of these ids stop at their next ticks."""
        profile = self.make_profile(stopped)
        plan = arrange(profile, self.ordered, self.aged, self.hopeless, thrift=1.0)
        return next((p.place for p in plan.placed if p.job is self.ordered[-1]), None)


def drained(
    now: float, jobs: Sequence[JobView], devices: Sequence[FleetDevice], policy: Policy
) -> dict[str, str]:
    """Running jobs whose devices are about to leave before they would be through; and why."""
    leaving = {d.name: d.until for d in devices if d.until - now <= policy.drain}
    found: dict[str, str] = {}
    for job in jobs:
        if job.run is not None and not job.run.stopping:
            gone = [
                name for name in job.run.devices if leaving.get(name, job.run.ends) < job.run.ends
            ]
            if gone:
                found[job.id] = f"{gone[0]} leaves in {leaving[gone[0]] - now:.0f} s"
    return found


def preempted(
    now: float,
    jobs: Sequence[JobView],
    ordered: Sequence[JobView],
    aged: int,
    hopeless: frozenset[str],
    policy: Policy,
    make_profile: MakeProfile,
    stopped: Collection[str],
) -> dict[str, str]:
    """Running jobs to stop for waiting ones, and why.

    Args:
        ordered: waiting jobs in order of service, the first `aged` of which have aged.
        make_profile: what is free if jobs of these ids stop at their next ticks.
        stopped: those that are stopped anyway.
    """
    victims = _victims(now, jobs, policy, stopped)
    found: dict[str, str] = {}
    for index, job in enumerate(ordered):
        if not victims or job.priority is not Priority.INTERACTIVE:
            continue
        ahead = ordered[: index + 1]
        seeker = _Seeker(ahead, min(aged, len(ahead)), hopeless, make_profile)
        gone = {*stopped, *found}
        waiting = seeker.place(gone)
        if waiting is None or waiting.start <= now:
            continue
        if job.deadline is not None and waiting.end <= job.due:
            continue
        chosen = _fewest(job, seeker, victims, gone)
        better = seeker.place({*gone, *(v.id for v in chosen)})
        cost = sum(_loss(v) for v in chosen)
        if better is not None and waiting.start - better.start > cost:
            found |= {v.id: f"{job.id} can't start otherwise" for v in chosen}
            victims = [v for v in victims if v not in chosen]
    return found


def _victims(
    now: float, jobs: Sequence[JobView], policy: Policy, stopped: Collection[str]
) -> list[JobView]:
    """Batch jobs that may be stopped, the cheapest first, of these the youngest."""
    found = [
        job
        for job in jobs
        if job.run is not None
        and job.priority is Priority.BATCH
        and not job.run.stopping
        and job.id not in stopped
        and not has_aged(now, job, policy)
        and job.run.ends - job.run.stops > _loss(job)
    ]
    return sorted(found, key=lambda job: (_loss(job), -job.arrived, job.id))


def _fewest(
    job: JobView, seeker: _Seeker, victims: Sequence[JobView], gone: Collection[str]
) -> list[JobView]:
    """Victims that are enough, and of which each is needed, for a job to be in time or to start."""

    def place(chosen: Sequence[JobView]) -> Place | None:
        return seeker.place({*gone, *(victim.id for victim in chosen)})

    every = place(victims)
    if every is None:
        return []
    in_time = job.deadline is not None and every.end <= job.due
    soonest = every.start

    def enough(chosen: Sequence[JobView]) -> bool:
        found = place(chosen)
        if found is None:
            return False
        return found.end <= job.due if in_time else found.start <= soonest

    chosen: list[JobView] = []
    for victim in victims:
        if enough(chosen):
            break
        chosen.append(victim)
    for victim in list(chosen):
        without = [each for each in chosen if each is not victim]
        if enough(without):
            chosen = without
    return chosen


def _loss(job: JobView) -> float:
    """Seconds of its group that stopping it costs."""
    assert job.run is not None
    return job.run.lost + job.restore
