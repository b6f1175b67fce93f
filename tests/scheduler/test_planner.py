from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scheduler.reckoned import SPEC, STRATEGIES, Costs, cluster, device, request

from longtake.scheduler.cluster import Cluster
from longtake.scheduler.decode_degrees import DecodeDegrees
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.planner import Advice, Goal, Planner, Wish, all_degrees, orders, worlds
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Strategy
from longtake.scheduler.simulator import Job, simulate

STEPS = 4


def make_planner(on: Cluster, wanted: Request) -> Planner:
    def costs(strategy: Strategy, degrees: Degrees, there: Cluster) -> Costs:
        return Costs(SPEC, wanted, degrees, there, strategy, decode=DecodeDegrees(degrees.world))

    return Planner(wanted, SPEC, STEPS, on, costs)


def search(
    on: Cluster,
    wish: Wish,
    seconds: float = 12.0,
    guidance: float = 1.0,
    strategies: Mapping[str, Strategy] = STRATEGIES,
) -> Advice:
    return make_planner(on, request(seconds, guidance)).search(strategies, wish)


SCORES = {
    Goal.LATENCY: lambda found, devices: found.seconds,
    Goal.THROUGHPUT: lambda found, devices: found.seconds / (devices // found.workers),
    Goal.FIRST_FRAME: lambda found, devices: found.first_frame,
    Goal.MEMORY: lambda found, devices: found.peak_memory,
    Goal.ENERGY: lambda found, devices: found.joules,
}


@pytest.mark.parametrize("goal", Goal)
def test_no_plan_is_better_than_the_best(goal):
    """Against all plans, each simulated in full."""
    on, some = cluster(4), {name: STRATEGIES[name] for name in ("causal", "cascade", "dual")}
    planner = make_planner(on, request(9.0, 5.0))
    advice = planner.search(some, Wish(goal, simulated=1000))
    scores = []
    for name, strategy in some.items():
        for candidate in planner.legal(name, strategy):
            efforts = planner.efforts_of(candidate)
            job = Job(strategy, request(9.0, 5.0), SPEC, STEPS)
            found = simulate(job, planner.plan_of(candidate), efforts)
            scores.append(SCORES[goal](found, 4))
    best = SCORES[goal](advice.best[0].prediction, 4)
    assert best == pytest.approx(min(scores), rel=2e-3)
    order = [SCORES[goal](choice.prediction, 4) for choice in advice.best]
    assert order == sorted(order)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_legal_plans_are_those_that_the_checks_accept(name, guidance):
    on, wanted = cluster(8), request(9.0, guidance)
    strategy = STRATEGIES[name]
    strategy.check(wanted, SPEC)
    found = {c.degrees for c in make_planner(on, wanted).legal(name, strategy)}
    clips = strategy.clips(wanted, SPEC)
    expected = set()
    for world in (1, 2, 4, 8):
        for degrees in all_degrees(world):
            try:
                degrees.check(SPEC, guidance, clips)
            except UserError:
                continue
            expected.add(degrees)
    assert found == expected
    assert all(degrees.world in worlds(8) for degrees in found)


def test_all_degrees_are_all_ways_to_multiply():
    for world in (1, 6, 8, 12):
        found = list(all_degrees(world))
        assert len(found) == len(set(found))
        every = range(1, world + 1)
        expected = {
            Degrees(cfg, stages, clip, ring, ulysses)
            for cfg in (1, 2)
            for stages in every
            for clip in every
            for ring in every
            for ulysses in every
            if cfg * stages * clip * ring * ulysses == world
        }
        assert set(found) == expected


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(sorted(Goal)),
    st.sampled_from(["speed", "bandwidth", "memory"]),
    st.floats(1.0, 5.0),
)
def test_more_of_anything_never_makes_the_best_plan_worse(goal, what, times):
    values = {"speed": 1e9, "bandwidth": 1e7, "memory": 12 * 2**20}
    found = []
    for more in (1.0, times):
        now = {**values, what: values[what] * more}
        kind = device(speed=now["speed"], memory=now["memory"])
        on = cluster(2, 2, bandwidth=now["bandwidth"], of=(kind, kind))
        some = {name: STRATEGIES[name] for name in ("causal", "rolling")}
        best = search(on, Wish(goal, simulated=1000), 9.0, 5.0, some).best
        found.append(SCORES[goal](best[0].prediction, 4))
    assert found[1] <= found[0] * (1 + 1e-6)


def test_memory_is_a_hard_bound_and_says_so():
    roomy = search(cluster(4), Wish())
    need = min(choice.prediction.peak_memory for choice in roomy.best)
    small = device(memory=need - 1)
    advice = search(cluster(4, of=(small,)), Wish())
    for choice in advice.best:
        assert choice.prediction.peak_memory <= small.memory
    told = [rejected.reason for rejected in advice.rejected if "GiB" in rejected.reason]
    assert told and all("on worker" in reason and "fast has" in reason for reason in told)
    nothing = search(cluster(4, of=(device(memory=1.0),)), Wish())
    assert not nothing.best and nothing.rejected


def test_why_a_plan_is_impossible_is_told_once():
    advice = search(cluster(8), Wish())
    told = [rejected.describe() for rejected in advice.rejected]
    heads = [line for line in told if "Ulysses" in line and line.startswith("causal")]
    assert len(heads) == 1
    assert "a Ulysses degree of 8 doesn't divide the model's 4 heads; legal are 1, 2, 4" in heads[0]
    cfg = [line for line in told if "cfg degree of 2" in line and line.startswith("causal")]
    assert len(cfg) == 1 and "more)" in cfg[0]


def test_only_exact_plans_where_that_is_wanted():
    advice = search(cluster(4), Wish(label="exact"))
    assert {choice.candidate.name for choice in advice.best} == {"bidirectional"}
    assert "it is lossy, and only exact is wanted" in {r.reason for r in advice.rejected}


def test_a_deadline_is_kept_or_nothing_is_told():
    free = search(cluster(4), Wish(Goal.ENERGY))
    fast = search(cluster(4), Wish(Goal.LATENCY))
    seconds = fast.best[0].prediction.seconds
    bound_ = search(cluster(4), Wish(Goal.ENERGY, deadline=seconds * 1.01))
    assert all(choice.prediction.seconds <= seconds * 1.01 for choice in bound_.best)
    assert bound_.best[0].prediction.joules >= free.best[0].prediction.joules
    late = search(cluster(4), Wish(deadline=seconds / 2, simulated=3))
    assert not late.best
    assert any("the deadline is" in rejected.reason for rejected in late.rejected)


def test_a_strategy_that_refuses_the_request_is_rejected_in_its_words():
    wanted = request(12.0, 1.0, 5.0)
    advice = make_planner(cluster(2), wanted).search(STRATEGIES, Wish())
    (told,) = [r for r in advice.rejected if r.name == "bidirectional"]
    assert told.degrees is None and "takes one prompt" in told.describe()


def test_the_faster_node_is_taken_first():
    slow, fast = device("slow", 1e8), device("fast", 1e9)
    on = cluster(2, 2, of=(slow, fast))
    assert [order.devices[0].name for order in orders(on, 2)] == ["slow", "fast"]
    wanted = {"causal": STRATEGIES["causal"]}
    best = search(on, Wish(simulated=1000), strategies=wanted).best[0]
    assert best.candidate.cluster.devices[0].name == "fast"


def test_numbers_of_workers_that_are_tried():
    assert worlds(8) == [1, 2, 4, 8]
    assert worlds(12) == [1, 2, 3, 4, 6, 8, 12]


def test_wishes_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="a label is exact"):
        Wish(label="good")
    with pytest.raises(UserError, match="the deadline must be more than 0"):
        Wish(deadline=0)
    endless = replace(request(), seconds=None)
    with pytest.raises(UserError, match="a plan needs an end"):
        make_planner(cluster(1), endless).search(STRATEGIES, Wish())
