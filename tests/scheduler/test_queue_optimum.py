"""How close decisions come to those of somebody who knows all that will arrive."""

from __future__ import annotations

from itertools import product

import pytest
from tests.scheduler.queued import fleet, job, option

from longtake.scheduler.queue_simulator import simulate
from longtake.scheduler.queue_state import JobView, Option
from longtake.scheduler.queue_traces import Asked, Demand, Model, Trace, make_trace, nodes
from longtake.scheduler.queue_yardsticks import first_come_first_served, most_in_time

narrow_and_wide = pytest.mark.parametrize("wide", [False, True], ids=["one device", "any width"])


def share_of_optimum(interactive: bool, wide: bool, slack: float, burst: float) -> float:
    """Of the deadlines that can be met, over two to five jobs on one to four devices."""
    met = best = 0
    for seed in range(100):
        trace = small_case(seed, interactive, wide, slack, burst)
        met += sum(record.in_time for record in simulate(trace).records)
        best += most_in_time([each.job for each in trace.asked], len(trace.devices))
    return met / best


def small_case(seed: int, interactive: bool, wide: bool, slack: float, burst: float) -> Trace:
    devices = 1 + seed // 4 % 4
    demand = Demand(
        load=1.0,
        interactive=float(interactive),
        lengths=(2.0, 20.0),
        slack=(1.0, slack),
        bound=1.0,
        burst=burst,
        restore=1.0,
        models=(Model(cost=4.0, memory=1.0, overhead=0.08, most=devices if wide else 1),),
    )
    return make_trace(seed, 2 + seed % 4, nodes(1, devices=devices), demand)


@narrow_and_wide
@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("slack", [2.0, 6.0])
def test_what_is_known_from_the_start_is_served_as_well_as_can_be(interactive, wide, slack):
    assert share_of_optimum(interactive, wide, slack, burst=1e9) >= 0.95


@narrow_and_wide
@pytest.mark.parametrize("slack", [2.0, 6.0])
def test_batch_jobs_that_arrive_unforeseen_are_served_as_well_as_can_be(wide, slack):
    assert share_of_optimum(False, wide, slack, burst=1.0) >= 0.95


@narrow_and_wide
def test_interactive_jobs_are_never_stopped_for_more_urgent_ones_which_costs_some(wide):
    """Here 95 % is not reached: what has begun goes on, whatever arrives a moment later."""
    assert share_of_optimum(True, wide, 6.0, burst=1.0) >= 0.85


@pytest.mark.parametrize("seed", range(8))
def test_the_optimum_is_that_of_all_schedules(seed):
    trace = small_case(4 * seed + 1, False, True, 2.0, burst=1.0)
    jobs = [in_whole_seconds(each.job) for each in trace.asked]
    assert most_in_time(jobs, 2) == best_of_all(jobs, 2)


def in_whole_seconds(known: JobView) -> JobView:
    """A few of them, on one device or two."""
    seconds, arrived = max(2, round(known.options[0].seconds / 8)), round(known.arrived / 8)
    options = option(1, seconds), option(2, (seconds + 1) // 2)
    return job(known.id, *options, arrived=float(arrived), deadline=arrived + seconds * 1.5)


def best_of_all(jobs: list[JobView], devices: int) -> int:
    """Over all starts and options."""
    return max(
        len(taken)
        for choice in product(*map(starts, jobs))
        if possible(taken := [placed for placed in choice if placed is not None], devices)
    )


def starts(job: JobView) -> list[tuple[Option, int] | None]:
    in_time = [
        (each, at)
        for each in job.options
        for at in range(int(job.arrived), int(job.due - each.seconds) + 1)
    ]
    return [None, *in_time]


def possible(taken: list[tuple[Option, int]], devices: int) -> bool:
    return all(
        sum(each.workers for each, start in taken if start <= at < start + each.seconds) <= devices
        for _, at in taken
    )


def test_first_come_first_served_overtakes_nobody():
    wide, small = job("wide", option(2, 10), arrived=1.0), job("small", option(1, 5), arrived=2.0)
    jobs = [job("first", option(1, 30)), wide, small]
    trace = Trace(tuple(map(Asked, jobs)), tuple(fleet(2)))
    outcome = simulate(trace, first_come_first_served)
    assert outcome.order == ("first", "wide", "small")
    assert [each.started for each in outcome.records] == [0.0, 30.0, 40.0]
