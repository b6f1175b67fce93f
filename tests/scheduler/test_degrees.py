"""Degrees: who sits where, what is legal, and what fits a number of workers."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product
from operator import mul

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.scheduler.balance import balance
from longtake.scheduler.degrees import Degrees, Place, shares
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec

SPEC = ModelSpec(8, 12, 16, 64, 4, 2, 1024, 3)
degrees = st.builds(Degrees, *[st.integers(1, 4)] * 5)


@given(degrees)
def test_ranks_and_places_are_one_to_one_and_in_order(some: Degrees) -> None:
    places = list(some.places())
    assert [some.place(rank) for rank in range(some.world)] == places == sorted(places)
    assert [some.rank(place) for place in places] == list(range(some.world))


def test_a_ulysses_group_is_contiguous_and_cfg_is_outermost() -> None:
    some = Degrees(cfg=2, stages=2, ring=2, ulysses=2)
    assert [some.rank(Place(ulysses=u)) for u in range(2)] == [0, 1]
    assert [some.rank(Place(ring=r)) for r in range(2)] == [0, 2]
    assert [some.rank(Place(stage=s)) for s in range(2)] == [0, 4]
    assert [some.rank(Place(cfg=c)) for c in range(2)] == [0, 8]


@given(st.integers(0, 100), st.integers(1, 12))
def test_shares_are_contiguous_complete_and_even(total: int, parts: int) -> None:
    spans = shares(total, parts)
    assert len(spans) == parts
    assert [i for span in spans for i in span.frames()] == list(range(total))
    lengths = [len(span) for span in spans]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(st.integers(1, 48), st.sampled_from([1.0, 5.0]))
def test_any_number_of_workers_is_placed(workers: int, guidance: float) -> None:
    found = Degrees.fit(workers, SPEC, guidance, {})
    assert found.world == workers
    found.check(SPEC, guidance)
    assert found.stages == found.clip == 1


@given(st.integers(1, 48), st.integers(1, 5))
def test_clips_are_taken_before_tokens_are_shared(workers: int, clips: int) -> None:
    found = Degrees.fit(workers, SPEC, 1.0, {}, clips)
    assert found.world == workers and found.clip <= clips
    assert all(workers % more or more > clips for more in range(found.clip + 1, workers + 1))


@given(degrees.filter(lambda d: d.cfg <= 2 and d.stages <= 8 and 12 % d.ulysses == 0))
def test_what_is_settled_stays(some: Degrees) -> None:
    guidance = 5.0 if some.cfg == 2 else 1.0
    wanted = asdict(some) | {"ring": None}
    assert Degrees.fit(some.world, SPEC, guidance, wanted, clips=some.clip) == some


@pytest.mark.parametrize(
    ("workers", "guidance", "wanted", "said"),
    [
        (5, 1.0, {"ulysses": 5}, "12 heads; legal are 1, 2, 3, 4, 6, 12"),
        (9, 1.0, {"stages": 9}, "the model has 8; legal are 1 to 8"),
        (2, 1.0, {"cfg": 2}, "guidance is 1"),
        (3, 5.0, {"cfg": 3}, "legal is 1 and 2"),
        (4, 1.0, {"ring": 3}, "4 workers can't be shared out as ring 3"),
        (4, 1.0, {"ring": 0}, "at least 1"),
        (7, 1.0, {"ring": 1, "stages": 1}, "7 workers don't fit"),
        (0, 1.0, {}, "0 workers"),
    ],
)
def test_what_does_not_fit_is_told_with_what_does(
    workers: int, guidance: float, wanted: dict[str, int], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Degrees.fit(workers, SPEC, guidance, wanted)


def test_degrees_are_described_in_words() -> None:
    assert Degrees().describe() == "one worker"
    assert Degrees(cfg=2, ring=3).describe() == "cfg 2 x ring 3"


def test_stages_may_have_layers_of_their_own() -> None:
    uneven = Degrees.fit(2, SPEC, 1.0, {"stage_layers": [5, 3]})
    assert uneven == Degrees(stages=2, stage_layers=(5, 3))
    assert [len(uneven.layers(stage, SPEC)) for stage in range(2)] == [5, 3]
    assert uneven.layers(1, SPEC).start == 5 and uneven.describe() == "stages 2 (5+3)"
    with pytest.raises(UserError, match=r"\[5, 4\] are 9 layers, but the model has 8"):
        Degrees(stages=2, stage_layers=(5, 4)).check(SPEC, 1.0)
    with pytest.raises(UserError, match="at least 1 layer for each of 3 stages"):
        Degrees(stages=3, stage_layers=(5, 3))


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 12),
)
def test_no_other_split_of_layers_is_through_sooner(
    stages: list[tuple[float, int]], layers: int
) -> None:
    pace, room = [pace for pace, _ in stages], [room for _, room in stages]
    every = product(*(range(1, most + 1) for most in room))
    possible = [own for own in every if sum(own) == layers]
    found = balance(layers, pace, room)
    assert (found is None) == (not possible)
    if found is not None:
        slowest = min(max(map(mul, own, pace)) for own in possible)
        assert found in possible and max(map(mul, found, pace)) == slowest
