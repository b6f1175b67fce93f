"""What workers tell each other before a run, and what is measured between them."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch

from longtake.launch.preflight import (
    TOPIC,
    Profile,
    Survey,
    judge,
    recall_survey,
    shortage_lines,
    versions,
)
from longtake.parallel.mesh import Rendezvous, connect, open_mesh
from longtake.parallel.preflight import (
    Links,
    PairSpeed,
    find_differences,
    find_slow,
    measure_links,
    share,
)
from longtake.runtime.memory import Need
from longtake.scheduler.degrees import Degrees

CPU = torch.device("cpu")
GIB = 2**30
FINE = Profile("here", "cpu", "here cpu", 8 * GIB, Need(GIB, GIB), versions(CPU))


def meet(meeting: Rendezvous, profiles: list[Profile]) -> Survey:
    store, rank = connect(meeting), meeting.rank
    told = share(store, rank, meeting.world, TOPIC, profiles[rank].to_json())
    if rank == 0:  # which is the last to leave
        assert recall_survey(store, meeting.world).profiles == tuple(profiles)
    return judge([Profile.from_json(text) for text in told])


@pytest.mark.parametrize(
    ("name", "impossible"), [("longtake", True), ("torch", False), ("Python", False)]
)
def test_a_version_that_differs_on_one_worker_is_named(
    workers: Any, name: str, impossible: bool
) -> None:
    other = replace(FINE, host="there", versions={**FINE.versions, name: "0.0.7"})
    first, *rest = workers.run(3, meet, [FINE, other, FINE])
    assert rest == [first, first]  # nobody decides alone
    assert first.profiles == (FINE, other, FINE)
    (sentence,) = first.problems if impossible else first.warnings
    assert not (first.warnings if impossible else first.problems)
    assert sentence.startswith(
        f"{name} is not the same everywhere: {FINE.versions[name]} on workers 0, 2 (host here), "
        "0.0.7 on worker 1 (host there); "
    )


def test_memory_too_small_is_told_with_what_is_needed_and_what_is_there(workers: Any) -> None:
    small = replace(FINE, host="small", memory="small cpu", free=GIB // 2)
    first, second = workers.run(2, meet, [FINE, small])
    assert first == second
    (sentence,) = first.problems
    assert sentence.startswith(
        "worker 1 (host small) needs about 2.0 GiB on cpu, 1.0 GiB of them for weights, but "
        "512.0 MiB are free; "
    )


def test_workers_that_share_a_memory_need_the_sum() -> None:
    assert shortage_lines([FINE] * 4) == []
    (sentence,) = shortage_lines([FINE] * 5)
    assert sentence.startswith(
        "workers 0, 1, 2, 3, 4 (host here) need about 10.0 GiB on cpu, 5.0 GiB of them for "
        "weights, but 8.0 GiB are free; "
    )
    assert shortage_lines([replace(FINE, memory=f"GPU {i}") for i in range(5)]) == []


def test_differences_begin_with_what_most_have() -> None:
    told = [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}, {"a": "2", "b": "x"}]
    differences = find_differences(told)
    assert differences == {"a": {"2": [1, 2], "1": [0]}}
    assert list(differences["a"]) == ["2", "1"]


def look(meeting: Rendezvous, degrees: Degrees) -> Links:
    with open_mesh(replace(meeting, interface="lo"), degrees, CPU) as mesh:
        return measure_links(mesh, seconds=0.3)


def test_every_pair_is_measured_both_ways(workers: Any) -> None:
    first, *rest = workers.run(3, look, Degrees(ring=3))
    assert rest == [first, first]
    assert [(pair.source, pair.target) for pair in first.pairs] == list(permutations(range(3), 2))
    assert first.together > 0
    for pair in first.pairs:
        assert pair.megabytes > 0 and pair.microseconds > 0


def test_links_far_below_others_of_their_kind_are_found() -> None:
    hosts = ["a", "a", "b", "b"]
    within, between = 10_000.0, 1_000.0

    def pairs(**slow: float) -> list[PairSpeed]:
        return [
            PairSpeed(i, j, slow.get(f"_{i}{j}", within if hosts[i] == hosts[j] else between), 10)
            for i, j in permutations(range(4), 2)
        ]

    assert find_slow(pairs(), hosts) == []
    found = find_slow(pairs(_01=2_000.0, _20=100.0, _31=240.0, _13=260.0), hosts)
    assert [(pair.source, pair.target) for pair in found] == [(2, 0), (3, 1), (0, 1)]
