"""Layers go where they are fastest, if that gains enough."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.scheduler.rebalance import StagePace, balanced

seconds = st.floats(0.01, 10)


def pace(layers: int, own: float, beside: float = 0.0, room: int = 99) -> StagePace:
    return StagePace(layers, own, beside, room)


@pytest.mark.parametrize(
    ("stages", "found"),
    [
        ([pace(4, 1.0), pace(4, 1.0)], None),  # even as they are
        ([pace(4, 1.0, beside=1.0), pace(4, 1.0)], (2, 6)),  # the VAE counts
        ([pace(4, 3.0), pace(4, 1.0)], (2, 6)),  # a device that is three times as slow
        ([pace(4, 1.0), pace(4, 1.05)], None),  # not worth a move
        ([pace(1, 9.0), pace(3, 1.0)], None),  # each keeps one
        ([pace(5, 1.0, 0.4), pace(5, 1.0), pace(5, 1.0, 0.2)], (4, 6, 5)),
        ([pace(4, 3.0), pace(4, 1.0, room=1)], (3, 5)),  # the fast one has little memory
        ([pace(4, 3.0), pace(4, 1.0, room=0)], None),
    ],
)
def test_layers_move_to_who_is_fast(stages: list[StagePace], found: tuple[int, ...] | None) -> None:
    assert balanced(stages) == found


@given(st.lists(st.tuples(st.integers(1, 4), seconds, seconds), min_size=2, max_size=3))
def test_no_other_division_is_faster(drawn: list[tuple[int, float, float]]) -> None:
    stages = [pace(*each) for each in drawn]
    layers = sum(stage.layers for stage in stages)

    def slowest(counts: tuple[int, ...]) -> float:
        return max(stage.seconds(n) for stage, n in zip(stages, counts, strict=True))

    every = product(range(1, layers + 1), repeat=len(stages))
    best = min(slowest(counts) for counts in every if sum(counts) == layers)
    found = balanced(stages, gain=0.0)
    now = tuple(stage.layers for stage in stages)
    assert slowest(found or now) == pytest.approx(best)
    assert found is None or sum(found) == layers
