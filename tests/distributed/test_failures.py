"""A peer that dies or hangs is a clear error in time, whatever one was doing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from longtake.parallel.errors import CommunicationError
from longtake.parallel.link import Link
from longtake.parallel.mesh import Mesh, Rendezvous, open_mesh
from longtake.scheduler.degrees import Degrees

CPU = torch.device("cpu")
LARGE = 4_000_000  # more than the system takes off a sender's hands


def exchange(mesh: Mesh) -> None:
    mesh.ring.exchange(torch.ones(5), torch.empty(5)).wait()


def gather(mesh: Mesh) -> None:
    mesh.ring.all_gather(torch.ones(5), [5, 5], 0)


def swap(mesh: Mesh) -> None:
    mesh.ring.all_to_all([torch.ones(1), torch.ones(2)], [[1], [2]])


def broadcast(mesh: Mesh) -> None:
    mesh.ring.broadcast(torch.ones(LARGE), 0)


def barrier(mesh: Mesh) -> None:
    mesh.ring.barrier()


def link_receive(mesh: Mesh) -> None:
    Link(mesh.stage).post((3,), torch.float32, 1 - mesh.place.stage).wait()


def link_send(mesh: Mesh) -> None:
    link = Link(mesh.stage)
    link.send(torch.ones(LARGE), 1 - mesh.place.stage)
    link.flush()


def lose(
    meeting: Rendezvous, degrees: Degrees, use: Callable[[Mesh], None]
) -> tuple[CommunicationError, CommunicationError]:
    """What the survivor is told, then and when it tries again."""
    mesh = open_mesh(meeting, degrees, CPU)
    if meeting.rank == 1:
        time.sleep(0.1)  # so that the other one waits already
        os._exit(7)
    errors = []
    for _ in range(2):
        with pytest.raises(CommunicationError) as caught:
            use(mesh)
        errors.append(caught.value)
    mesh.close()
    return errors[0], errors[1]


@pytest.mark.parametrize(
    ("use", "action"),
    [
        (exchange, "ring exchange"),
        (gather, "ring all_gather"),
        (swap, "ring all_to_all"),
        (broadcast, "ring broadcast"),
        (barrier, "ring barrier"),
        (link_receive, "stage 1 to 0 receive"),
        (link_send, "stage 0 to 1 send"),
    ],
)
def test_a_dead_peer_is_named(workers: Any, use: Callable[[Mesh], None], action: str) -> None:
    degrees = Degrees(stages=2) if "stage" in action else Degrees(ring=2)
    errors = workers.run(2, lose, degrees, use, may_die=[1])[0]
    for error in errors:
        assert (error.action, error.worker, error.peers) == (action, 0, (1,))
        assert "within" not in error.detail  # it was noticed at once, not by the timeout
    assert str(errors[0]).startswith(f"worker 0: {action} with worker 1: ")


def hang(meeting: Rendezvous) -> tuple[CommunicationError, float] | None:
    """Rank 3 hangs; each of the others waits for it in another way."""
    mesh = open_mesh(meeting, Degrees(cfg=2, stages=2), CPU)
    if mesh.rank == 3:
        time.sleep(meeting.timeout + 1)
        mesh.close()
        return None
    start = time.monotonic()
    with pytest.raises(CommunicationError) as caught:
        if mesh.rank == 0:
            mesh.world.barrier()
        elif mesh.rank == 1:
            mesh.cfg.exchange(torch.ones(2), torch.empty(2)).wait()
        else:
            link_receive(mesh)
    waited = time.monotonic() - start
    time.sleep(1)  # closing at once would be news to the others
    mesh.close()
    return caught.value, waited


def test_dual_19_a_hanging_peer_is_named_in_time(workers: Any) -> None:
    limit = 3.0
    told = workers.run(4, hang, timeout=2 * limit)[:3]
    actions = ["world barrier", "cfg exchange", "stage 1 to 0 receive"]
    for rank, (error, waited) in enumerate(told):
        assert (error.action, error.worker) == (actions[rank], rank)
        assert "not done within 3 s" in error.detail and "bytes" in error.detail
        assert waited > 0.9 * limit
        if rank:
            assert error.peers == (3,)


def leave_by_error(meeting: Rendezvous) -> str:
    try:
        with open_mesh(meeting, Degrees(ring=2), CPU) as mesh:
            if mesh.rank == 1:
                raise KeyError("own trouble")
            mesh.ring.barrier()
    except (KeyError, CommunicationError) as error:
        return type(error).__name__
    return "nothing happened"


def test_who_leaves_by_an_error_does_not_wait_and_is_missed(workers: Any) -> None:
    assert workers.run(2, leave_by_error) == ["CommunicationError", "KeyError"]


def misbehave(meeting: Rendezvous, how: str) -> int:
    if meeting.rank == 1:
        if how == "raises":
            raise LookupError("on purpose")
        if how == "dies":
            os._exit(9)
        if how == "hangs":
            time.sleep(30)
    return meeting.rank


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raises", "LookupError: on purpose"),
        ("dies", "rank 1:\ndied with exit code 9"),
        ("hangs", "rank 1:\nnot done within 0.5 s"),
    ],
)
def test_the_pool_reports_and_survives(workers: Any, how: str, told: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=told):
        workers.run(2, misbehave, how, timeout=0.5 if how == "hangs" else 20)
    assert workers.run(2, misbehave, "behaves") == [0, 1]
