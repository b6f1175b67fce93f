"""What the cost model says workers send is what they send, to the byte."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.distributed.walks import TEXT_TOKENS, TEXT_WIDTH, Walk, bytes_sent

from longtake.scheduler.cluster import Cluster, Device, Efficiency, Link, Node
from longtake.scheduler.costs import Costs
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.plan import Plan
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.shapes import TextShape
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.cascade import Cascade
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.strategies.clip import Clip, Scopes
from longtake.scheduler.task import Payload

WINDOW = Retention(6, 2, Positions.RELATIVE)
CASCADE = Cascade(replace(WINDOW, recache=False), 3, 1, "both")
DEVICE = Device("cpu", 1e9, {"float32": 1e9}, 1e9, Efficiency({"flash-2": 1.0}, 1, 1), 0, 0, 1)


def bytes_predicted(walk: Walk, degrees: Degrees, rank: int) -> dict[str, int]:
    """The same from shapes."""
    schedule = walk.schedule()
    spec = replace(
        schedule.spec,
        text_tokens=TEXT_TOKENS,
        text=replace(TextShape(), width=TEXT_WIDTH),
    )
    node = Node(DEVICE, degrees.world, Link(1e9, 0))
    costs = Costs(spec, schedule.request, degrees, Cluster("one", (node,)), 4, schedule.strategy)
    plan = Plan(degrees, 2 if schedule.request.guidance > 1 else 1)
    stage = degrees.place(rank).stage
    sent: Counter[str] = Counter()
    for part in plan.parts(schedule):
        for exchange in costs.exchanges(part, rank):
            sent[exchange.name] += exchange.bytes
        if plan.lane_of(part) != plan.lane_of_stage(stage):
            continue
        for edge in plan.outgoing(part):
            if edge.payload is not Payload.LATENT:
                to = 0 if edge.payload is Payload.FLOW else stage + 1
                size = costs.edge_bytes(edge, part, rank)
                sent[f"stage {stage} to {to} send"] += size
    return dict(sent)


@pytest.mark.parametrize(
    ("strategy", "degrees"),
    [
        (Bidirectional(), Degrees(cfg=2, ulysses=2)),
        (Causal(WINDOW), Degrees(ring=2, ulysses=2)),
        (Causal(WINDOW), Degrees(stages=2, ring=2)),
        (CASCADE, Degrees(clip=2, ulysses=2)),
        (CASCADE, Degrees(clip=2, stages=2)),
        (CASCADE, Degrees(cfg=2, ring=2)),
        (Clip(Scopes(halo=1, global_frames=3), 3), Degrees(clip=2, ring=2)),
    ],
    ids=str,
)
def test_bytes_are_those_of_the_communicator(workers: Any, strategy: Any, degrees: Degrees) -> None:
    guidance = 3.0 if degrees.cfg > 1 or degrees.stages > 1 else 1.0
    joint = isinstance(strategy, Bidirectional | Clip)
    walk = Walk(strategy, guidance=guidance, cues=(0,) if joint else (0, 4))
    sent = workers.run(degrees.world, bytes_sent, walk, degrees, timeout=60)
    for rank, real in enumerate(sent):
        predicted = bytes_predicted(walk, degrees, rank)
        told = {name: size for name, size in real.items() if size and name in predicted}
        assert told == predicted
        # All else is a few bytes: what is decided for a block, and who is there.
        rest = {name: size for name, size in real.items() if name not in predicted and size}
        assert sum(rest.values()) < 2000, rest
