"""What lanes do of tasks, and what travels between them, for every plan."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.scheduler.degrees import Degrees
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.plan import DECODE, EVALUATIONS, Plan
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Edge, Kind, Payload, Span, Task

SPEC = ModelSpec(8, 12, 16, 64, 4, 2, 1024, 3)


def task(kind: Kind, last: bool = False) -> Task:
    return Task(0, kind, 4, Span(12, 15), 0, last=last)


def test_one_worker_does_whole_tasks() -> None:
    for kind in Kind:
        assert list(Plan().parts([task(kind)])) == [task(kind)]


def test_only_a_finished_block_travels_to_its_decode() -> None:
    plan = Plan()
    latents = (Edge(Payload.LATENT, 4, "denoise", DECODE),)
    assert plan.outgoing(task(Kind.DENOISE, last=True)) == latents
    assert plan.outgoing(task(Kind.RESTORE, last=True)) == latents
    assert plan.incoming(task(Kind.DECODE)) == latents
    for kind in set(Kind) - {Kind.DENOISE, Kind.RESTORE}:
        assert plan.outgoing(task(kind, last=True)) == ()
    for kind in set(Kind) - {Kind.DECODE, Kind.ADVANCE}:
        assert plan.incoming(task(kind, last=True)) == ()


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, Schedule]:
    branches = draw(st.integers(1, 2))
    degrees = Degrees(
        cfg=draw(st.integers(1, branches)),
        stages=draw(st.integers(1, 4)),
        ring=draw(st.integers(1, 3)),
        ulysses=draw(st.integers(1, 3)),
    )
    cues = (Cue(0, "first"), Cue(1.3125, "second"))
    causal = draw(st.booleans())
    request = Request(cues if causal else cues[:1], 3.0, 32, 32, 16, guidance=float(branches))
    strategy = Causal(Retention(9, 3)) if causal else Bidirectional()
    return Plan(degrees, branches), Schedule(strategy, request, SPEC, draw(st.integers(1, 3)))


@given(plans())
def test_everything_that_is_needed_was_sent_before_and_nothing_else(
    case: tuple[Plan, Schedule],
) -> None:
    """In order between any two lanes, and from nobody to himself: so no walk can wait for ever."""
    plan, schedule = case
    underway: dict[tuple[str, str], list[Edge]] = {}
    for part in plan.parts(schedule):
        for edge in plan.incoming(part):
            assert edge.target == plan.lane_of(part)
            assert underway[edge.source, edge.target].pop(0) == edge
        for edge in plan.outgoing(part):
            assert edge.source == plan.lane_of(part) != edge.target
            underway.setdefault((edge.source, edge.target), []).append(edge)
    assert not any(underway.values())


@given(plans())
def test_every_stage_evaluates_every_branch_of_every_task_once(
    case: tuple[Plan, Schedule],
) -> None:
    plan, schedule = case
    done: Counter[tuple[int, int, int | None]] = Counter()
    advanced: Counter[int] = Counter()
    whole = list(schedule)
    for part in plan.parts(whole):
        if part.kind in EVALUATIONS:
            done[part.tick, part.stage, part.branch] += 1
        advanced[part.tick] += part.kind is Kind.ADVANCE
    assert set(done.values()) == {1}
    stages, in_flight = plan.degrees.stages, {branch for *_, branch in done}
    assert len(done) == stages * len(in_flight) * sum(t.kind in EVALUATIONS for t in whole)
    for task in whole:
        assert advanced[task.tick] == (task.kind is Kind.DENOISE and stages > 1)
    apart = stages > 1 and plan.branches == 2 and plan.degrees.cfg == 1
    assert in_flight == ({0, 1} if apart else {None})


@pytest.mark.parametrize("stages", [1, 3])
def test_lanes_are_named(stages: int) -> None:
    plan = Plan(Degrees(stages=stages))
    assert len(plan.lanes) == len(set(plan.lanes)) == stages + 1
    assert plan.lane_of(task(Kind.DECODE)) == DECODE in plan.lanes


def side_by_side(blocks: int) -> list[Task]:
    """Two steps of blocks that see nothing of each other."""
    return [
        Task(blocks * step + block, Kind.DENOISE, block, Span(block, block + 1), 0, step)
        for step in range(2)
        for block in range(blocks)
    ]


def test_other_blocks_are_evaluated_while_a_flow_is_awaited() -> None:
    """Three blocks on two stages: the last has begun before the first one's flow is needed."""
    parts = Plan(Degrees(stages=2)).parts(side_by_side(3))
    own = [(part.kind, part.block, part.step) for part in parts if part.stage == 0]
    first = [(Kind.DENOISE, block, 0) for block in range(3)]
    both = [
        (kind, block, int(kind is Kind.DENOISE))
        for block in range(3)
        for kind in (Kind.ADVANCE, Kind.DENOISE)
    ]
    assert own == first + both + [(Kind.ADVANCE, block, 1) for block in range(3)]


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("stages", [2, 3, 4, 8])
def test_the_stages_are_full_but_flows_do_not_pile_up(stages: int, branches: int) -> None:
    """A stage has two messages on their way at most: more flows than that and one for each stage
    would stop the last stage, and it would stop the first, which was to take them."""
    underway = most = 0
    for part in Plan(Degrees(stages=stages), branches).parts(side_by_side(20)):
        underway += (part.kind is Kind.DENOISE and part.stage == 0) - (
            branches if part.kind is Kind.ADVANCE else 0
        )
        most = max(most, underway)
    assert stages + 1 <= most <= stages + 2 * branches - 1


def test_decoding_waits_for_its_flow_and_nothing_for_decoding() -> None:
    first, second, third = side_by_side(3)[:3]
    decode = Task(7, Kind.DECODE, 0, Span(0, 1), 0)
    parts = Plan(Degrees(stages=2)).parts([first, second, decode, third])
    own = [(part.kind, part.block) for part in parts if part.stage == 0]
    begun = [(Kind.DENOISE, block) for block in range(3)]
    done = [(Kind.ADVANCE, 0), (Kind.DECODE, 0), (Kind.ADVANCE, 1), (Kind.ADVANCE, 2)]
    assert own == begun + done
