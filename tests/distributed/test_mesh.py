"""Who is in which group, and how workers meet."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import ROLES, Rendezvous, alone, connect, members, open_mesh
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError

CPU = torch.device("cpu")
PLANS = [Degrees(*axes) for axes in product((1, 2), (1, 2, 3), (1, 2), (1, 3))]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("degrees", PLANS, ids=Degrees.describe)
def test_groups_of_a_role_share_out_the_world(degrees: Degrees, role: str) -> None:
    groups = {members(degrees, place, role) for place in degrees.places()}
    assert sorted(rank for group in groups for rank in group) == list(range(degrees.world))
    for group in groups:
        for rank in group:
            place = degrees.place(rank)
            assert members(degrees, place, role) == group
            for axis in {"cfg", "stage", "ring", "ulysses"} - set(ROLES[role]):
                assert getattr(place, axis) == getattr(degrees.place(group[0]), axis)


@pytest.mark.parametrize("degrees", PLANS, ids=Degrees.describe)
def test_the_index_in_a_group_is_the_coordinate(degrees: Degrees) -> None:
    for rank, place in enumerate(degrees.places()):
        for axis in ("cfg", "stage", "ring", "ulysses"):
            assert members(degrees, place, axis).index(rank) == getattr(place, axis)
        own = members(degrees, place, "sequence").index(rank)
        assert own == place.ring * degrees.ulysses + place.ulysses
        first = members(degrees, place, "ulysses")[0]
        assert members(degrees, place, "ulysses") == tuple(range(first, first + degrees.ulysses))


def describe(meeting: Rendezvous, degrees: Degrees) -> dict[str, Any]:
    """Open a mesh and add up ranks over every group, which takes all of them to work."""
    with open_mesh(replace(meeting, interface="lo"), degrees, CPU) as mesh:
        told: dict[str, Any] = {}
        for role in ROLES:
            group = getattr(mesh, role)
            own = torch.tensor([mesh.rank])
            gathered = group.all_gather(own, [1] * group.size, 0).tolist()
            told[role] = (group.ranks, group.index, tuple(gathered))
        return told


@pytest.mark.parametrize(
    "degrees",
    [
        Degrees(cfg=2, stages=2),
        Degrees(ring=2, ulysses=2),
        Degrees(cfg=2, ring=2),
        Degrees(clip=2, stages=2),
    ],
    ids=Degrees.describe,
)
def test_every_group_connects_its_members(workers: Any, degrees: Degrees) -> None:
    for rank, told in enumerate(workers.run(degrees.world, describe, degrees)):
        for role, (ranks, index, gathered) in told.items():
            assert ranks == members(degrees, degrees.place(rank), role) == gathered
            assert ranks[index] == rank


def talk(meeting: Rendezvous) -> Any:
    store = connect(meeting)
    if meeting.rank == 0:
        store.set("first", "ä word")
        store.set("once", "for one")
        return store.get("last")
    waiting = threading.Thread(target=store.get, args=("never", 1.0), daemon=True)
    waiting.start()
    told = store.get("first")  # another thread's waiting does not keep it
    still = waiting.is_alive()
    with pytest.raises(CommunicationError, match=r"worker 1: store get 'absent'.*within 0\.1 s"):
        store.get("absent", timeout=0.1)
    there = store.has("first"), store.has("absent")
    there += store.comes("first", 0.1), store.comes("absent", 0.1)
    store.drop("first")
    there += (store.has("first"), store.take("once", 1) == "for one", store.has("once"))
    store.set("last", told.upper())  # rank 0 and its table are gone once it has read that
    return still, *there


def test_the_store_carries_texts(workers: Any) -> None:
    assert workers.run(2, talk) == [
        "Ä WORD",
        (True, True, False, True, False, False, True, False),
    ]


def open_twice(meeting: Rendezvous) -> list[float]:
    store = connect(meeting)
    sums = []
    for _ in range(2):
        with open_mesh(meeting, Degrees(ring=2), CPU, store=store) as mesh:
            sums.append(mesh.ring.all_gather(torch.ones(1), [1, 1], 0).sum().item())
    return sums


def test_a_store_serves_one_mesh_after_the_other(workers: Any) -> None:
    assert workers.run(2, open_twice) == [[2, 2], [2, 2]]


def disagree(meeting: Rendezvous) -> CommunicationError:
    degrees = Degrees(ring=2) if meeting.rank == 0 else Degrees(ulysses=2)
    with pytest.raises(CommunicationError) as caught:
        open_mesh(meeting, degrees, CPU)
    return caught.value


def test_workers_with_different_plans_find_out(workers: Any) -> None:
    errors = workers.run(2, disagree)
    assert errors[0].peers == (1,) and errors[1].peers == (0,)
    theirs, own = (f"{axis} 2, decoded by rank 0" for axis in ("ulysses", "ring"))
    assert errors[0].detail == f"it was told {theirs}, this worker {own}"


def stay_away(meeting: Rendezvous) -> str | None:
    if meeting.rank == 1:
        return None
    with pytest.raises(CommunicationError) as caught:
        open_mesh(replace(meeting, timeout=1.0), Degrees(ring=2), CPU)
    return str(caught.value)


def test_who_does_not_come_is_named(workers: Any) -> None:
    told = workers.run(2, stay_away)[0]
    assert told.startswith("worker 0: rendezvous with worker 1: not at 127.0.0.1:")


def test_impossible_meetings_are_refused() -> None:
    meeting = Rendezvous("127.0.0.1", 1, 0, 2)
    with pytest.raises(ValueError, match="ring 3 needs 3 workers, got rank 0 of 2"):
        open_mesh(meeting, Degrees(ring=3), CPU)


def no_interface(meeting: Rendezvous) -> str:
    with pytest.raises(UserError) as caught:
        open_mesh(replace(meeting, interface="nothing0"), Degrees(ring=2), CPU)
    return str(caught.value)


def test_an_unknown_network_interface_is_named(workers: Any) -> None:
    assert "no network interface 'nothing0', but lo" in workers.run(2, no_interface)[0]


def test_alone_everything_is_of_size_one() -> None:
    mesh = alone(CPU)
    assert all(getattr(mesh, role).size == 1 for role in ROLES)
    mesh.store.set("key", "text")
    assert mesh.store.get("key") == "text"
    with pytest.raises(CommunicationError, match="nobody set it"):
        mesh.store.get("other")
    mesh.close()
