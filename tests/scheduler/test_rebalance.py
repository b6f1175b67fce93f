"""Layers go where they are fastest, if that gains enough."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.scheduler.rebalance import StagePace, balanced

seconds = st.floats(0.01, 10)


@pytest.mark.parametrize(
    ("stages", "found"),
    [
        ([StagePace(4, 1.0), StagePace(4, 1.0)], None),  # even as they are
        ([StagePace(4, 1.0, beside=1.0), StagePace(4, 1.0)], (2, 6)),  # the VAE counts
        ([StagePace(4, 3.0), StagePace(4, 1.0)], (2, 6)),  # a device that is three times as slow
        ([StagePace(4, 1.0), StagePace(4, 1.05)], None),  # not worth a move
        ([StagePace(1, 9.0), StagePace(3, 1.0)], None),  # each keeps one
        ([StagePace(5, 1.0, 0.4), StagePace(5, 1.0), StagePace(5, 1.0, 0.2)], (4, 6, 5)),
    ],
)
def test_layers_move_to_who_is_fast(stages: list[StagePace], found: tuple[int, ...] | None) -> None:
    assert balanced(stages) == found


@given(st.lists(st.tuples(st.integers(1, 4), seconds, seconds), min_size=2, max_size=3))
def test_no_other_division_is_faster(drawn: list[tuple[int, float, float]]) -> None:
    stages = [StagePace(*each) for each in drawn]
    layers = sum(stage.layers for stage in stages)

    def slowest(counts: tuple[int, ...]) -> float:
        return max(stage.seconds(n) for stage, n in zip(stages, counts, strict=True))

    every = product(range(1, layers + 1), repeat=len(stages))
    best = min(slowest(counts) for counts in every if sum(counts) == layers)
    found = balanced(stages, gain=0.0)
    now = tuple(stage.layers for stage in stages)
    assert slowest(found or now) == pytest.approx(best)
    assert found is None or sum(found) == layers
