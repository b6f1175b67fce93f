"""What the planner calls possible, workers can start, and the other way round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.launch.auto_plan import choose_degrees
from longtake.launch.config import compose_settings
from longtake.launch.preflight import Profile, shortage_lines, versions
from longtake.runtime.memory import Need, worker_needs
from longtake.scheduler.cluster import Cluster, Device, Efficiency, Link, Node
from longtake.scheduler.costs import Costs
from longtake.scheduler.degrees import AXES, Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.known_models import TINYWORLD
from longtake.scheduler.planner import Candidate, Goal, Planner, Wish, all_degrees
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Strategy
from longtake.scheduler.simulator import Job
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.cascade import Cascade
from longtake.scheduler.strategies.causal import Causal

WINDOW = Retention(9, 3, Positions.RELATIVE, recache=False)
STRATEGIES: dict[str, Strategy] = {
    "bidirectional": Bidirectional(),
    "causal": Causal(WINDOW),
    "cascade": Cascade(WINDOW, 4, 1, "both"),
}
REQUEST = Request((Cue(0.0, "a cat"),), 3.0, 128, 96, 16, guidance=3.0)
STEPS, ITEMSIZE = 3, 4
EFFICIENCY = Efficiency({"flash-2": 0.5}, 0.6, 0.3, 300.0, 40000.0)
DEVICE = Device("core", 2e9, {"float32": 1e12, "tf32": 1e12}, 1e11, EFFICIENCY, 1e-4, 1e-5, 100, 9)


def planner(cluster: Cluster) -> Planner:
    def costs(strategy: Strategy, degrees: Degrees, there: Cluster) -> Costs:
        return Costs(TINYWORLD, REQUEST, degrees, there, ITEMSIZE, strategy)

    return Planner(REQUEST, TINYWORLD, STEPS, cluster, costs)


def cluster(memory: float, together: bool) -> Cluster:
    node = Node(replace(DEVICE, memory=memory), 4, Link(1e9, 1e-5), together)
    return Cluster("four", (node,))


def needs_of(strategy: Strategy, candidate: Candidate, on_cpu: bool) -> list[Need]:
    return worker_needs(TINYWORLD, strategy, REQUEST, ITEMSIZE, candidate.degrees, on_cpu=on_cpu)


@pytest.mark.parametrize("together", [False, True], ids=["apart", "one memory"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_memory_is_judged_alike(name: str, together: bool) -> None:
    strategy = STRATEGIES[name]
    judged = planner(cluster(1e9, together))
    needed = {}
    for candidate in judged.legal(name, strategy):
        needs = needs_of(strategy, candidate, together)
        needed[candidate.degrees] = sum(n.total for n in needs) if together else needs[0].total
    memory = sorted(needed.values())[len(needed) // 2]  # enough for about half of them
    seen = set()
    for candidate in planner(cluster(memory, together)).legal(name, strategy):
        fits = not judged.efforts_of(candidate).shortages
        needs = needs_of(strategy, candidate, together)
        profiles = [
            Profile("host", "cpu", "all" if together else str(rank), int(memory), need, VERSIONS)
            for rank, need in enumerate(needs)
        ]
        assert fits == (shortage_lines(profiles) == [])
        seen.add(fits)
    assert seen == {True, False}


VERSIONS = versions(torch.device("cpu"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_degrees_are_judged_alike(name: str) -> None:
    """Those of a run that are all settled, as those of a chosen plan are on every worker."""
    strategy, parallel = STRATEGIES[name], compose_settings({}).parallel
    legal = {c.degrees for c in planner(cluster(1e12, False)).legal(name, strategy)}
    job = Job(strategy, REQUEST, TINYWORLD, STEPS)
    for degrees in all_degrees(4):
        own = {axis: getattr(degrees, axis) for axis in AXES}
        settled = replace(parallel, workers=4, **own)
        try:
            found = choose_degrees(settled, job, ITEMSIZE, lambda: pytest.fail("nothing is open"))
        except UserError:
            assert degrees not in legal
        else:
            assert found.degrees == degrees and degrees in legal


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.sampled_from(["speed", "memory speed", "memory", "links"]),
    st.floats(1.0, 8.0),
    st.sampled_from([Goal.LATENCY, Goal.FIRST_FRAME, Goal.THROUGHPUT]),
)
def test_more_of_anything_never_makes_the_best_plan_slower(
    what: str, times: float, goal: Goal
) -> None:
    """By the cost model that real plans are judged by."""
    found = []
    for more in (1.0, times):
        device = DEVICE
        if what == "speed":
            device = replace(device, peak={kind: r * more for kind, r in device.peak.items()})
        elif what == "memory speed":
            device = replace(device, bytes_per_second=device.bytes_per_second * more)
        memory = 4e7 * (more if what == "memory" else 1)
        link = Link(1e8 * (more if what == "links" else 1), 1e-5)
        node = Node(replace(device, memory=memory), 2, link)
        advice = planner(Cluster("two", (node,))).search(STRATEGIES, Wish(goal, simulated=100))
        best = advice.best[0].prediction
        found.append(best.first_frame if goal is Goal.FIRST_FRAME else best.seconds)
    assert found[1] <= found[0] * (1 + 1e-6)
