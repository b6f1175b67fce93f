"""The policy of the central scheduler: who starts, on which devices, and who makes room.

Pure: the same jobs, devices and instant always give the same decision. It is asked whenever
something has happened, and keeps nothing between two questions: a plan reaches as far as the jobs
that wait, and only what begins now is binding. `queue_simulator` replays traces over it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from math import inf

from longtake.scheduler.queue_admission import hopeless
from longtake.scheduler.queue_order import ages_at, in_order
from longtake.scheduler.queue_placement import Profile
from longtake.scheduler.queue_plan import Plan, best_plan
from longtake.scheduler.queue_preemption import Preemption, drained
from longtake.scheduler.queue_state import Decision, FleetDevice, JobView, Policy, Start


def decide(
    now: float,
    jobs: Sequence[JobView],
    devices: Sequence[FleetDevice],
    policy: Policy | None = None,
) -> Decision:
    """What to do at an instant.

    Args:
        jobs: all that wait or run; those that are held back for some time are left out.
        devices: all that are there, free or not.
        policy: what is promised; by default `Policy()`.
    """
    policy = policy or Policy()
    late = hopeless(now, jobs, devices)
    profile = partial(Profile, now, devices, jobs, policy)
    order = partial(in_order, now, hopeless=late, policy=policy, devices=len(devices))
    stops = drained(now, jobs, devices, policy)
    ordered, aged = order(jobs)
    first = ordered[: policy.reserved]
    plan = best_plan(profile(stops), first, aged, late, alone=len(jobs) == 1)
    preempted = Preemption(now, late, policy, profile, order).stops(jobs, plan, stops)
    if preempted:
        stops |= preempted
        plan = best_plan(profile(stops), first, aged, late, alone=False)
    _backfill(plan, ordered[policy.reserved :])
    starts = tuple(
        Start(each.job.id, each.place.option, each.devices, each.place.end)
        for each in plan.placed
        if each.place.start <= now
    )
    expected = {each.job.id: each.place.start for each in plan.placed}
    return Decision(
        starts, stops, tuple(sorted(late)), expected, _again(now, jobs, devices, policy)
    )


def _backfill(plan: Plan, jobs: Sequence[JobView]) -> None:
    """Start what can run in the holes between the places that others have."""
    for job in jobs:
        if not plan.profile.idle:
            return
        place = plan.profile.best(job, thrift=1.0, at_once=True)
        if place is not None:
            plan.put(job, place)


def _again(
    now: float, jobs: Collection[JobView], devices: Collection[FleetDevice], policy: Policy
) -> float:
    """When ageing or a device that leaves changes what is to be done."""
    ages = (ages_at(job, policy) for job in jobs if job.run is None)
    leaves = (device.until - policy.drain for device in devices)
    return min((at for at in (*ages, *leaves) if at > now), default=inf)
