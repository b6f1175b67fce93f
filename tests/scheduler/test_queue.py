"""Decisions at one instant."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.scheduler.queued import BATCH, INTERACTIVE, fleet, job, option, running

from longtake.scheduler.queue import decide
from longtake.scheduler.queue_admission import refusal
from longtake.scheduler.queue_state import Policy

ONE = option(1, 100)


def started(*args, **kwargs) -> dict[str, str]:
    return {start.job: " ".join(start.devices) for start in decide(*args, **kwargs).starts}


def test_interactive_comes_first_then_the_earliest_deadline_then_the_oldest():
    jobs = [
        job("old", ONE, arrived=0.0),
        job("older", ONE, arrived=-1.0),
        job("soon", ONE, deadline=300.0),
        job("sooner", ONE, deadline=200.0),
        job("watched", ONE, arrived=3.0, priority=INTERACTIVE),
    ]
    for devices in range(1, 6):
        order = ["watched", "sooner", "soon", "older", "old"]
        assert list(started(4.0, jobs, fleet(devices))) == order[:devices]


def test_what_can_not_be_in_time_any_more_is_told_and_comes_after_what_can():
    jobs = [job("late", ONE, deadline=50.0), job("not yet", ONE, deadline=110.0)]
    decision = decide(0.0, jobs, fleet(1))
    assert decision.late == ("late",)
    assert [start.job for start in decision.starts] == ["not yet"]
    assert decision.expected["late"] == 100.0


def test_the_largest_is_given_up_if_that_saves_others():
    jobs = [job("large", option(1, 90), deadline=95.0)]
    jobs += [job(f"small {n}", option(1, 30), deadline=100.0) for n in range(3)]
    assert list(started(0.0, jobs, fleet(1))) == ["small 0"]


def test_a_group_is_of_one_node_and_leaves_the_largest_hole():
    taken = [running("a", ONE, "a0", 900.0), running("b", ONE, "b0 b1", 900.0)]
    assert started(0.0, [*taken, job("two", option(2, 50))], fleet(4, 4)) == {"two": "b2 b3"}
    assert started(0.0, [*taken, job("three", option(3, 50))], fleet(4, 4)) == {"three": "a1 a2 a3"}
    over = started(0.0, [*taken, job("four", option(4, 50))], fleet(4, 4))
    assert over == {"four": "a1 a2 a3 b2"}


def test_it_waits_for_a_node_rather_than_be_slow_across_two():
    taken = [running("a", ONE, "a0", 10.0), running("b", ONE, "b0", 900.0)]
    wide = job("wide", option(2, 50, across=3.0))
    assert started(0.0, [*taken, wide], fleet(2, 2)) == {}
    assert started(0.0, [*taken, replace(wide, options=(option(2, 50, across=1.1),))], fleet(2, 2))


def test_memory_and_speed_of_devices_count():
    mixed = [
        *fleet(2, memory=24),
        *[replace(d, name=d.name + "big", node="big", speed=2.0) for d in fleet(2)],
    ]
    assert started(0.0, [job("large", option(2, 50, memory=40))], mixed) == {"large": "a0big a1big"}
    assert started(0.0, [job("small", option(2, 50))], mixed) == {"small": "a0big a1big"}


def test_a_small_job_runs_ahead_of_a_large_one_only_if_that_is_not_delayed():
    taken = running("taken", ONE, "a0", 50.0)
    large = job("large", option(2, 50))
    short, long = job("short", option(1, 40), arrived=1.0), job("long", option(1, 60), arrived=1.0)
    assert started(1.0, [taken, large, short], fleet(2)) == {"short": "a1"}
    assert started(1.0, [taken, large, long], fleet(2)) == {}


def test_ranks_share_devices_only_where_a_job_has_begun_and_no_others_are_left():
    two = option(2, 50, memory=30)
    assert started(0.0, [job("new", two)], fleet(1)) == {}
    begun = job("begun", two, begun=True, remaining=0.5, restore=3.0)
    decision = decide(0.0, [begun], fleet(1))
    assert decision.starts[0].devices == ("a0", "a0")
    assert decision.starts[0].ends == pytest.approx(3.0 + 0.5 * 50 * 2)
    assert started(0.0, [begun], fleet(1, memory=50)) == {}  # both ranks don't fit
    assert started(0.0, [begun, running("other", ONE, "a1", 10.0)], fleet(2)) == {}  # one will come
    assert started(0.0, [begun], fleet(1), Policy(sharing=False)) == {}
    three = job("three", option(3, 50, memory=20), begun=True)
    assert started(0.0, [three], fleet(2)) == {"three": "a0 a0 a1"}


def test_a_batch_job_makes_room_for_an_interactive_one():
    watched = job("watched", ONE, arrived=5.0, priority=INTERACTIVE)
    long = running("long", ONE, "a0", 500.0, stops=8.0, lost=2.0)
    decision = decide(5.0, [long, watched], fleet(1))
    assert decision.preempts == {"long": "watched can't wait"}
    assert decision.expected["watched"] == 8.0
    assert decide(5.0, [long, replace(watched, priority=BATCH)], fleet(1)).preempts == {}
    assert decide(5.0, [long, watched], fleet(2)).preempts == {}
    patient = replace(watched, deadline=650.0)
    assert decide(5.0, [long, patient], fleet(1)).preempts == {}
    assert decide(5.0, [long, replace(patient, deadline=550.0)], fleet(1)).preempts


def test_nothing_is_preempted_that_is_soon_through_or_has_aged_or_is_not_needed():
    watched = job("watched", ONE, arrived=5.0, priority=INTERACTIVE)
    soon = running("soon", ONE, "a0", 12.0, stops=8.0, lost=5.0)
    assert decide(5.0, [soon, watched], fleet(1)).preempts == {}
    aged = running("aged", ONE, "a0", 500.0, stops=8.0, arrived=-2000.0)
    assert decide(5.0, [aged, watched], fleet(1)).preempts == {}
    several = [running(name, ONE, f"a{at}", 500.0, stops=8.0) for at, name in enumerate("xyz")]
    assert len(decide(5.0, [*several, watched], fleet(3)).preempts) == 1


def test_an_aged_job_comes_first_until_aged_ones_have_their_share():
    policy = Policy(patience=100.0, aged_share=0.5)
    watched = [job(f"w{n}", ONE, arrived=100.0, priority=INTERACTIVE) for n in range(4)]
    aged = [job(f"b{n}", ONE, arrived=0.0) for n in range(4)]
    assert list(started(99.0, [*watched, *aged], fleet(4), policy)) == ["w0", "w1", "w2", "w3"]
    assert list(started(100.0, [*watched, *aged], fleet(4), policy)) == ["b0", "b1", "w0", "w1"]
    assert decide(60.0, aged, fleet(1), policy).again == 100.0


def test_devices_that_leave_are_emptied():
    leaving = [*fleet(1, until=100.0), *[replace(d, name="b0", node="b") for d in fleet(1)]]
    long, short = running("long", ONE, "a0", 500.0, 8.0), running("short", ONE, "a0", 95.0, 8.0)
    assert decide(50.0, [long], leaving).preempts == {"long": "a0 leaves in 50 s"}
    assert decide(50.0, [short], leaving).preempts == {}
    assert started(50.0, [job("next", ONE)], leaving) == {"next": "b0"}
    assert decide(10.0, [long], leaving).preempts == {}
    assert decide(10.0, [long], leaving).again == 40.0


def test_what_no_group_can_run_is_refused_with_the_reason():
    wide = [option(8, 10, memory=40), option(16, 5, memory=20)]
    assert refusal(wide, fleet(4, 4)) is None
    assert refusal(wide, fleet(4)) == (
        "it needs at least 8 of 40.0 GiB or 16 of 20.0 GiB, and there are 4 devices, the largest "
        "of 80.0 GiB"
    )
    assert refusal(wide, fleet(8, memory=24)) is not None
    assert refusal([], fleet(8)) == "no way to run it is known"
