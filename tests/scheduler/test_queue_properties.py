"""What holds of every decision, whatever arrives and whatever fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scheduler.queued import BATCH, INTERACTIVE, fleet, job, option

from longtake.scheduler.queue import decide
from longtake.scheduler.queue_order import ages_at, has_aged
from longtake.scheduler.queue_simulator import Outcome, simulate
from longtake.scheduler.queue_state import Decision, FleetDevice, JobView, Option, Policy
from longtake.scheduler.queue_traces import Asked, Joins, Leaves, Trace

few = settings(max_examples=60, deadline=None)


@st.composite
def jobs(draw: st.DrawFn, widths: Sequence[int] = (1, 2, 3, 4, 6), rigid: bool = False) -> JobView:
    work, memory = draw(st.integers(2, 60)), draw(st.sampled_from([10, 30, 60]))
    counts = draw(st.sets(st.sampled_from(widths), min_size=1, max_size=1 if rigid else 3))
    arrived = float(draw(st.integers(0, 60)))
    slack = draw(st.none() | st.integers(1, 100))
    return job(
        f"j{draw(st.integers(0, 10**9))}",
        *(option(n, work * (1 + 0.1 * (n - 1)) / n, memory, 1.5) for n in sorted(counts)),
        arrived=arrived,
        deadline=None if slack is None else arrived + slack,
        priority=draw(st.sampled_from([INTERACTIVE, BATCH])),
        restore=draw(st.sampled_from([0.0, 1.0])),
    )


@st.composite
def traces(draw: st.DrawFn, faults: bool = True, **kinds: object) -> Trace:
    """A few jobs on two nodes; any device may be lost, be told to leave, and come back."""
    asked = [
        Asked(
            each, draw(st.integers(1, 8)), draw(st.sampled_from([1.0, 0.7, 1.4])) if faults else 1.0
        )
        for each in draw(st.lists(jobs(**kinds), min_size=1, max_size=12, unique_by=lambda j: j.id))
    ]
    slow = [replace(device, speed=0.5) for device in fleet(0, 0, 2)]
    devices = [*fleet(4, 4), *slow]
    events: list[Joins | Leaves] = []
    for device in (
        draw(st.lists(st.sampled_from(devices), max_size=5, unique=True)) if faults else []
    ):
        at = float(draw(st.integers(1, 60)))
        if draw(st.booleans()):
            events.append(Joins(max(0.0, at - 30), replace(device, until=at)))
        events.append(Leaves(at, device.name, noticed=draw(st.sampled_from([0.0, 3.0]))))
        events.append(Joins(at + draw(st.integers(5, 90)), device))
    return Trace(tuple(asked), tuple(devices), tuple(events))


@dataclass
class Checked:
    """Asks for decisions, and looks at each."""

    policy: Policy = field(default_factory=lambda: Policy(patience=50.0, drain=10.0, reserved=4))
    ahead: dict[str, int] = field(default_factory=dict)  # by job, aged ones when it aged

    def __call__(
        self, now: float, jobs: Sequence[JobView], devices: Sequence[FleetDevice]
    ) -> Decision:
        decision = decide(now, jobs, devices, self.policy)
        assert decide(now, jobs[::-1], devices, self.policy) == decision
        by_id = {each.id: each for each in jobs}
        leaving = {each.name for each in devices if each.until - now <= self.policy.drain}
        staying = [each for each in devices if each.name not in leaving]
        for start in decision.starts:
            check_start(by_id[start.job], start.option, start.devices, staying)
        for name in decision.preempts:
            self.check_preempted(now, by_id[name], jobs, leaving)
        assert all(by_id[name].deadline is not None for name in decision.late)
        assert decision.again > now
        aged = [each for each in jobs if each.run is None and has_aged(now, each, self.policy)]
        for each in aged:
            before = [
                other for other in aged if ages_at(other, self.policy) < ages_at(each, self.policy)
            ]
            self.ahead.setdefault(each.id, len(before))
        return decision

    def check_preempted(
        self, now: float, job: JobView, jobs: Sequence[JobView], leaving: set[str]
    ) -> None:
        assert job.run is not None and not job.run.stopping
        if not leaving & set(job.run.devices):
            assert job.priority is BATCH and not has_aged(now, job, self.policy)
            assert job.run.ends - job.run.stops > job.restore
            assert any(other.run is None for other in jobs)


def check_start(
    job: JobView, option: Option, names: Sequence[str], devices: Sequence[FleetDevice]
) -> None:
    assert job.run is None and option in job.options and len(names) == option.workers
    memory = {device.name: device.memory for device in devices}
    for name, ranks in Counter(names).items():
        assert ranks * option.memory <= memory[name]
        if ranks > 1:
            large = [each for each in devices if each.memory >= option.memory]
            assert job.begun and len(large) < option.workers


@few
@given(traces())
def test_no_job_is_lost_and_no_device_is_given_twice(trace: Trace):
    outcome = simulate(trace, Checked())  # raises where a device is taken
    assert all(record.ended < inf for record in outcome.records)


@few
@given(traces(faults=False))
def test_nobody_waits_longer_than_is_promised(trace: Trace):
    asked = Checked()
    check_promise(simulate(trace, asked), asked)


def check_promise(outcome: Outcome, asked: Checked) -> None:
    longest = max(start.ends - at for at, start in outcome.runs)
    for record in outcome.records:
        ahead = asked.ahead.get(record.job.id, 0)
        assert record.waited <= asked.policy.patience + 2 * (ahead + 1) * longest + 1e-6


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 3), st.integers(5, 30), st.integers(1, 3), st.floats(0.25, 1.0))
def test_batch_jobs_are_served_while_more_is_asked_for_than_can_be_done(
    devices: int, seconds: int, width: int, share: float
):
    """Somebody watches on every device, and the next in line is always waiting."""
    watched = [
        Asked(job(f"w{n:03d}", option(1, 10), arrived=n * 9.0 / devices, priority=INTERACTIVE))
        for n in range(45 * devices)
    ]
    wide = option(min(width, devices), seconds)
    batch = [Asked(job(f"b{n}", wide, arrived=float(n)), seconds) for n in range(3)]
    trace = Trace((*watched, *batch), tuple(fleet(devices)))

    def ends(policy: Policy) -> list[float]:
        asked = Checked(policy)
        outcome = simulate(trace, asked)
        check_promise(outcome, asked)
        return [each.ended for each in outcome.records if each.job.priority is BATCH]

    patient = Policy(patience=100.0, aged_share=share, reserved=6)
    assert max(ends(patient)) < 100 + 2 * 3 * 30 + 30 < 45 * 9
    assert max(ends(replace(patient, patience=inf))) > 45 * 9


@few
@given(
    st.lists(jobs(rigid=True), min_size=1, max_size=12, unique_by=lambda each: each.id),
    st.integers(1, 6),
    st.integers(1, 12),
)
def test_no_device_is_idle_that_nobody_waits_for(
    waiting: list[JobView], devices: int, reserved: int
):
    """Whoever could run on free devices but does not, would delay somebody who comes before."""
    now = 60.0
    decision = decide(now, waiting, fleet(devices), Policy(reserved=reserved))
    started = {start.job for start in decision.starts}
    free = devices - sum(start.option.workers for start in decision.starts)
    order = list(decision.expected)
    for each in waiting:
        if each.id in started or each.options[0].workers > free:
            continue
        before = order[: order.index(each.id)] if each.id in order else order
        end = now + each.seconds(each.options[0])
        assert any(now < decision.expected[other] < end for other in before)


@few
@given(st.lists(jobs(widths=(1,)), min_size=1, max_size=8, unique_by=lambda each: each.id))
def test_the_earliest_deadline_comes_first_where_one_device_can_meet_all(waiting: list[JobView]):
    """Within a class; on one device that order meets all deadlines if any order does."""
    mates = [replace(each, priority=BATCH, arrived=0.0) for each in waiting]
    at, asked = 0.0, []
    for each in sorted(mates, key=lambda each: (each.deadline is None, each.due)):
        at += each.seconds(each.options[0])
        due = None if each.deadline is None else max(each.due, at)
        asked.append(replace(each, deadline=due))
    trace = Trace(tuple(map(Asked, asked)), tuple(fleet(1)))
    outcome = simulate(trace)
    assert outcome.goodput() == 1.0
    dues = {each.id: each.due for each in asked}
    assert [dues[name] for name in outcome.order] == sorted(dues.values())
