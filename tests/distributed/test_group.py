"""Collectives between real processes, with uneven and empty shares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.parallel.group import Group
from longtake.parallel.mesh import Rendezvous, alone, open_mesh
from longtake.scheduler.degrees import Degrees, shares

CPU = torch.device("cpu")


def share(rank: int, length: int, dim: int) -> Tensor:
    """A tensor that tells whose it is."""
    shape = [2, 3, 4]
    shape[dim] = length
    return torch.arange(torch.Size(shape).numel()).view(shape) + 1000.0 * rank


def collectives(meeting: Rendezvous, totals: list[int]) -> dict[str, Any]:
    with open_mesh(meeting, Degrees(ring=meeting.world), CPU) as mesh:
        return {f"{total}": use(mesh.world, total) for total in totals}


def use(group: Group, total: int) -> dict[str, Any]:
    lengths = [len(part) for part in shares(total, group.size)]
    own = lengths[group.index]
    told = {
        f"gather {dim}": group.all_gather(share(group.index, own, dim), lengths, dim)
        for dim in range(3)
    }
    # To member i goes a tensor as long as i's share; strided on purpose.
    chunks = [share(group.index, length, 1).transpose(0, 2) for length in lengths]
    told["to all"] = group.all_to_all(chunks, [(4, own, 2)] * group.size)
    given = share(group.index, total, 2).transpose(0, 1)
    told["broadcast"] = [group.broadcast(given.clone(), source) for source in range(group.size)]
    if group.size > 1:
        previous = (group.index - 1) % group.size
        arriving = torch.full((2, lengths[previous], 4), -1.0)
        group.exchange(share(group.index, own, 1), arriving).wait()
        told["exchange"] = arriving
    return told


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_collectives_move_what_they_say(workers: Any, world: int) -> None:
    totals = [0, 1, world, 2 * world + 1, 3 * world - 1]
    answers = workers.run(world, collectives, totals)
    for total in totals:
        lengths = [len(part) for part in shares(total, world)]
        for rank, answer in enumerate(answers):
            told = answer[str(total)]
            for dim in range(3):
                whole = torch.cat([share(peer, n, dim) for peer, n in enumerate(lengths)], dim)
                assert torch.equal(told[f"gather {dim}"], whole)
            for peer in range(world):
                assert torch.equal(
                    told["to all"][peer], share(peer, lengths[rank], 1).transpose(0, 2)
                )
                assert torch.equal(told["broadcast"][peer], share(peer, total, 2).transpose(0, 1))
            if world > 1:
                previous = (rank - 1) % world
                assert torch.equal(told["exchange"], share(previous, lengths[previous], 1))


def test_alone_every_collective_is_an_identity_without_a_copy() -> None:
    group = alone(CPU).sequence
    x = torch.randn(2, 3)
    assert group.all_gather(x, [3], 1) is x
    assert group.all_to_all([x], [x.shape])[0] is x
    assert group.broadcast(x, 0) is x
    group.barrier()
