"""Clusters: which device a rank has, and what joins two of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from longtake.scheduler.cluster import Cluster, Device, Efficiency, Link, Node
from longtake.scheduler.errors import UserError

FAST, SLOW = Link(300e9, 1e-5), Link(25e9, 5e-5, total=50e9)
FOUND = Efficiency({"flash-2": 0.4}, 0.6, 0.3)
BIG = Device("big", 80e9, {"bfloat16": 1e15}, 3e12, FOUND, 0, 0, 700)
SMALL = replace(BIG, name="small", peak={"bfloat16": 1e14})
MIXED = Cluster("mixed", (Node(BIG, 2, FAST), Node(SMALL, 3, SLOW)), SLOW)


def test_ranks_go_through_the_nodes_in_order() -> None:
    assert [device.name for device in MIXED.devices] == ["big", "big", "small", "small", "small"]
    assert [MIXED.node_of(rank) for rank in range(5)] == [0, 0, 1, 1, 1]


def test_a_link_is_the_node_s_or_the_network() -> None:
    assert MIXED.link(0, 1) is MIXED.nodes[0].link
    assert MIXED.link(2, 4) is MIXED.nodes[1].link
    assert MIXED.link(1, 2) is MIXED.network


def test_senders_share_what_is_shared() -> None:
    assert SLOW.rate(1) == SLOW.rate(2) == 25e9
    assert SLOW.rate(5) == 10e9
    assert FAST.rate(5) == 300e9
    assert SLOW.seconds(25e9, messages=2) == pytest.approx(1 + 1e-4)
    assert SLOW.seconds(0, messages=2) == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cluster("none", ()), "no nodes"),
        (lambda: Cluster("apart", (Node(BIG, 1, FAST),) * 2), "needs a network"),
        (lambda: Node(BIG, 0, FAST), "at least 1 device"),
        (lambda: Link(0, 0), "more than 0 bytes"),
        (lambda: Link(1, -1), "at least 0 seconds"),
        (lambda: MIXED.node_of(5), "5 devices, no rank 5"),
        (lambda: BIG.peak_of("float8"), "no peak for float8; known: bfloat16"),
    ],
)
def test_what_can_not_be_is_refused(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(UserError, match=words):
        make()
