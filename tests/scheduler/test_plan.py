"""What travels between lanes."""

from __future__ import annotations

import pytest

from longtake.scheduler.plan import Lane, Plan, overlapped
from longtake.scheduler.task import Edge, Kind, Payload, Span, Task

ALONE = Plan((Lane("all", frozenset(Kind)),))
LATENTS = (Edge(Payload.LATENT, 4, "denoise", "decode"),)


def task(kind: Kind, last: bool = False) -> Task:
    return Task(0, kind, 4, Span(12, 15), 0, last=last)


def test_every_kind_of_task_has_one_lane() -> None:
    for kind in Kind:
        owners = [lane.name for lane in overlapped().lanes if kind in lane.kinds]
        assert owners == [overlapped().lane_of(kind)]


def test_only_a_finished_block_travels_to_its_decode() -> None:
    plan = overlapped()
    assert plan.outgoing(task(Kind.DENOISE, last=True)) == LATENTS
    assert plan.incoming(task(Kind.DECODE)) == LATENTS
    assert plan.outgoing(task(Kind.DENOISE)) == ()
    for kind in set(Kind) - {Kind.DENOISE}:
        assert plan.outgoing(task(kind, last=True)) == ()
    for kind in set(Kind) - {Kind.DECODE}:
        assert plan.incoming(task(kind, last=True)) == ()


@pytest.mark.parametrize("kind", Kind)
def test_nothing_travels_within_a_lane(kind: Kind) -> None:
    assert ALONE.outgoing(task(kind, last=True)) == ALONE.incoming(task(kind)) == ()
