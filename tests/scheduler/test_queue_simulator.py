from __future__ import annotations

from dataclasses import replace

import pytest
from tests.scheduler.queued import BATCH, INTERACTIVE, fleet, job, option

from longtake.scheduler.queue_simulator import Outcome, simulate
from longtake.scheduler.queue_state import Decision, JobView, Start
from longtake.scheduler.queue_traces import (
    Asked,
    Demand,
    Joins,
    Leaves,
    Mishaps,
    Trace,
    make_trace,
    nodes,
)
from longtake.scheduler.queue_yardsticks import first_come_first_served

ONE, TWO = option(1, 100), option(2, 50)


def replay(*jobs: JobView, on: int = 1, events=(), blocks: int = 10, pace: float = 1.0) -> Outcome:
    asked = tuple(Asked(each, blocks, pace) for each in jobs)
    return simulate(Trace(asked, tuple(fleet(on)), tuple(events)))


def test_jobs_run_one_after_another_on_one_device():
    outcome = replay(
        job("b", ONE, arrived=1.0), job("a", ONE, restore=3.0), job("c", ONE, arrived=900)
    )
    assert outcome.order == ("a", "b", "c")
    assert [each.ended for each in outcome.records] == pytest.approx([103, 203, 1000])
    assert [each.waited for each in outcome.records] == pytest.approx([0, 102, 0])
    assert outcome.utilisation == pytest.approx(303 / 1000)
    assert outcome.longest_wait() == pytest.approx(102)


def test_goodput_is_the_share_of_deadlines_that_were_met():
    jobs = [job(f"{due}", ONE, deadline=due) for due in (100.0, 200.0, 250.0)]
    outcome = replay(*jobs, job("any time", ONE), on=1)
    assert outcome.goodput() == pytest.approx(2 / 3)
    assert outcome.goodput(INTERACTIVE) == 1.0
    assert outcome.records[2].late_since == 200.0  # it is told when it is certain, at the latest


def test_a_preempted_job_stops_at_a_tick_and_goes_on_without_doing_it_again():
    long, watched = job("long", ONE, restore=2.0), job("w", ONE, arrived=25, priority=INTERACTIVE)
    outcome = replay(long, watched)
    first, second = outcome.records
    assert second.started == pytest.approx(32)  # the third of ten blocks ends at 2 + 30 s
    assert first.ended == pytest.approx(132 + 2 + 70)
    assert (first.preempted, first.waited) == (1, pytest.approx(100))


def test_a_lost_device_costs_the_block_in_flight_and_the_job_shares_what_is_left():
    outcome = replay(job("two", TWO, restore=1.0), on=2, events=[Leaves(18.0, "a1", noticed=4.0)])
    (record,) = outcome.records
    assert record.lost == 1
    assert [start.devices for _, start in outcome.runs] == [("a0", "a1"), ("a0", "a0")]
    # Three blocks of 5 s are kept; the other seven take twice as long on one device.
    assert record.ended == pytest.approx(18 + 4 + 1 + 7 * 10)


def test_a_notice_is_in_time_to_move_elsewhere():
    (first, second) = fleet(2)
    events = [Joins(10.0, replace(first, until=70.0)), Leaves(70.0, "a0")]
    outcome = replay(job("one", ONE), on=2, events=events)
    (record,) = outcome.records
    assert (record.lost, record.preempted) == (0, 1)
    assert [start.devices for _, start in outcome.runs] == [("a0",), (second.name,)]
    assert record.ended == pytest.approx(100)


def test_a_fleet_that_grows_is_used_at_once():
    more = [Joins(10.0, device) for device in nodes(1, devices=2, name="new")]
    outcome = replay(*(job(f"{n}", ONE) for n in range(3)), on=1, events=more)
    assert [each.started for each in outcome.records] == [0.0, 10.0, 10.0]


def test_what_takes_longer_than_predicted_holds_up_others_and_loses_nothing():
    outcome = replay(job("a", ONE), job("b", ONE), on=1, pace=1.5)
    assert [each.ended for each in outcome.records] == pytest.approx([150, 300])


def test_what_can_not_be_carried_out_is_an_error():
    def twice(now, jobs, devices) -> Decision:
        return Decision(tuple(Start(each.id, ONE, ("a0",), now + 100) for each in jobs))

    with pytest.raises(ValueError, match="can't be done"):
        simulate(Trace((Asked(job("a", ONE)), Asked(job("b", ONE))), tuple(fleet(1))), twice)


def test_two_hundred_requests_on_64_devices_that_fail():
    """Bursts, deadlines, wrong predictions, a device lost every five minutes: all are served."""
    demand = Demand(load=0.7, burst=4.0, error=0.1)
    trace = make_trace(1, 200, nodes(8), demand, Mishaps(lost_every=300.0))
    outcome = simulate(trace)
    assert all(record.ended < float("inf") for record in outcome.records)
    assert sum(record.lost for record in outcome.records) > 0
    assert outcome == simulate(trace)
    assert outcome.goodput() > 0.9 > simulate(trace, first_come_first_served).goodput()
    assert outcome.goodput(INTERACTIVE) > 0.9 < outcome.goodput(BATCH)
