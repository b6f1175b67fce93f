"""Who decodes, with whom, and what is legal."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.scheduler.decode_degrees import DecodeDegrees, cut
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request

SPEC = ModelSpec(8, 12, 16, 64, 16, 2, 1024, 3)
REQUEST = Request((Cue(0, "a red circle"),), 5.0, 480, 832, 16)  # 60 rows of latents
LAYERS = 22  # of Wan's decoder


def fit(workers: int, bands: int | None, stages: int | None, spread: bool = True) -> DecodeDegrees:
    return DecodeDegrees.fit(workers, SPEC, REQUEST, bands=bands, stages=stages, spread=spread)


@given(st.integers(1, 5), st.integers(1, 5))
def test_every_decoder_is_in_one_group_of_each_kind(bands: int, stages: int) -> None:
    grid = DecodeDegrees(bands, stages)
    for rank in range(grid.world):
        beside, behind = grid.bands_of(rank), grid.stages_of(rank)
        assert (len(beside), len(behind)) == (bands, stages)
        assert set(beside) & set(behind) == {rank}
        assert behind.index(rank) == grid.stage(rank)
        assert {grid.stage(other) for other in beside} == {grid.stage(rank)}
        assert {grid.bands_of(other).index(other) for other in behind} == {beside.index(rank)}
    assert grid.bands_of(grid.world) == grid.stages_of(grid.world) == ()


def test_the_frames_end_on_rank_0_and_bands_are_neighbours() -> None:
    grid = DecodeDegrees(bands=2, stages=2)
    assert grid.bands_of(0) == (0, 1) and grid.stages_of(0) == (2, 0)
    assert grid.bands_of(3) == (2, 3) and grid.stages_of(3) == (3, 1)


@pytest.mark.parametrize(
    ("workers", "bands", "stages", "spread", "found"),
    [
        (8, None, None, True, (8, 1)),
        (8, None, None, False, (1, 1)),
        (8, None, 3, True, (2, 3)),
        (8, None, 3, False, (1, 3)),
        (100, None, None, True, (60, 1)),
        (4, 3, None, True, (3, 1)),
        (1, None, None, True, (1, 1)),
    ],
)
def test_what_is_open_is_chosen(
    workers: int, bands: int | None, stages: int | None, spread: bool, found: tuple[int, int]
) -> None:
    assert fit(workers, bands, stages, spread) == DecodeDegrees(*found)


@pytest.mark.parametrize(
    ("workers", "bands", "stages", "told"),
    [
        (64, 61, 1, r"vae_bands=61 needs .* a height of 480 has 60; legal are 1 to 60"),
        (64, 1, 23, r"vae_stages=23 needs .* decoder has 22; legal are 1 to 22"),
        (3, 2, 2, "decoding by 2 bands x 2 stages needs 4 workers, got 3; .* at most their number"),
        (2, None, 3, "decoding by 3 stages needs 3 workers, got 2"),
        (2, 0, None, "vae_bands must be at least 1, got 0"),
        (2, None, -1, "vae_stages must be at least 1, got -1"),
    ],
)
def test_what_is_illegal_is_refused_with_what_is_legal(
    workers: int, bands: int | None, stages: int | None, told: str
) -> None:
    assert len(SPEC.vae.decoder_steps) == LAYERS
    with pytest.raises(UserError, match=told):
        fit(workers, bands, stages)


@given(st.data())
def test_no_cut_has_a_cheaper_dearest_stage(data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=8))
    parts = data.draw(st.integers(1, len(costs)))
    spans = cut(costs, parts)
    assert [frame for span in spans for frame in span.frames()] == list(range(len(costs)))
    assert len(spans) == parts and all(len(span) for span in spans)
    dearest = min(
        max(sum(costs[start:stop]) for start, stop in pairwise((0, *stops, len(costs))))
        for stops in combinations(range(1, len(costs)), parts - 1)
    )
    assert max(sum(costs[span.start : span.stop]) for span in spans) == dearest


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(UserError, match="has 3 layers to cut into stages, got 4 stages; legal are"):
        cut([1, 2, 3], 4)
