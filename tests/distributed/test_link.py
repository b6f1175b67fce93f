"""Messages between stages: in order, posted early, from buffers that are used again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.parallel.link import Link
from longtake.parallel.mesh import Rendezvous, alone, open_mesh
from longtake.scheduler.degrees import Degrees

CPU = torch.device("cpu")
SHAPES = [(2, 3), (1, 40_000), (5,), (0, 7), (3, 1, 2), (1, 40_000), (4,)]


def message(source: int, number: int) -> Tensor:
    dtype = (torch.float32, torch.bfloat16)[number % 2]
    return torch.full(SHAPES[number], 10.0 * source + number, dtype=dtype)


def pass_on(meeting: Rendezvous) -> list[Tensor]:
    """Each stage sends all messages to the next and returns what came from the previous."""
    with open_mesh(meeting, Degrees(stages=meeting.world), CPU) as mesh:
        link, index = Link(mesh.stage), mesh.place.stage
        following, previous = (index + 1) % meeting.world, (index - 1) % meeting.world
        posted = []
        for number, shape in enumerate(SHAPES):
            posted.append(link.post(shape, message(previous, number).dtype, previous))
        for number in range(len(SHAPES)):
            outgoing = message(index, number)
            link.send(outgoing, following)
            outgoing.zero_()  # it was copied
        received = [handle.wait() for handle in reversed(posted)]
        link.flush()
        return received[::-1]


@pytest.mark.parametrize("world", [2, 3])
def test_messages_arrive_whole_and_in_order(workers: Any, world: int) -> None:
    for rank, received in enumerate(workers.run(world, pass_on)):
        for number, tensor in enumerate(received):
            assert torch.equal(tensor, message((rank - 1) % world, number))


def send_to_wrong_stage(meeting: Rendezvous) -> str:
    with open_mesh(meeting, Degrees(stages=meeting.world), CPU) as mesh:
        link = Link(mesh.stage)
        with pytest.raises(ValueError) as caught:
            link.send(torch.ones(1), (mesh.place.stage - 1) % meeting.world)
        return str(caught.value)


def test_only_neighbours_are_linked(workers: Any) -> None:
    told = workers.run(3, send_to_wrong_stage)[1]
    assert told == "stage 1 has no link 1 to 0; it has 0 to 1, 1 to 2"


def test_one_stage_has_no_link() -> None:
    with pytest.raises(ValueError, match="it has none"):
        Link(alone(CPU).stage).send(torch.ones(1), 0)
