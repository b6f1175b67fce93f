"""What the cost model says workers send to decode together is what they send, to the byte."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.runtime.vaes import PLAIN, RESIDUAL, make_vae

from longtake.parallel.mesh import Rendezvous, open_mesh
from longtake.runtime.shared_decoder import make_decoder
from longtake.scheduler.cluster import Cluster, Device, Efficiency, Link, Node
from longtake.scheduler.costs import Costs
from longtake.scheduler.decode_degrees import DecodeDegrees
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.shapes import VaeShape
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.task import Kind, Span, Task
from longtake.scheduler.timeline import Action, Activity

CPU = torch.device("cpu")
DEVICE = Device("cpu", 1e9, {"float32": 1e9}, 1e9, Efficiency({"flash-2": 1.0}, 1, 1), 0, 0, 1)
VAES = {
    "plain": (PLAIN, VaeShape(8, None, (1, 2, 4, 4), 1)),
    "residual": (RESIDUAL, VaeShape(8, 12, (1, 2, 2), 1, 8, (True, True), 2, True)),
}
ROWS, COLUMNS = 7, 3
PIECES = [Span(0, 2), Span(2, 3), Span(3, 6)]  # latent frames


def sent_by(meeting: Rendezvous, degrees: DecodeDegrees, kind: str) -> dict[str, int]:
    """What this worker's transfers carry, by name."""
    actions: list[Action] = []
    vae = make_vae(VAES[kind][0])
    opened = open_mesh(meeting, Degrees(ring=meeting.world), CPU, actions.append, decode=degrees)
    with opened as mesh:
        if mesh.decoders is None:
            return {}
        actions.clear()
        decoder = make_decoder(vae, mesh, "decode")
        for piece in PIECES:
            decoder.begin()
            with torch.inference_mode():
                decoder.decode(torch.zeros(1, vae.config.z_dim, len(piece), ROWS, COLUMNS))
        decoder.close()
        sent: Counter[str] = Counter()
        for action in actions:
            if action.activity is Activity.TRANSFER and action.bytes:
                sent[action.name] += action.bytes
        return dict(sent)


def predicted(degrees: DecodeDegrees, kind: str, rank: int, world: int) -> dict[str, int]:
    """The same from shapes."""
    shape = VAES[kind][1]
    spec = ModelSpec(2, 2, 8, 32, shape.channels, 1, 1024, 3, shape.stride, vae=shape)
    request = Request((Cue(0.0, "a"),), 1.0, ROWS * shape.stride, COLUMNS * shape.stride, 8)
    cluster = Cluster("one", (Node(DEVICE, world, Link(1e9, 0)),))
    among = Degrees(ring=world)
    costs = Costs(spec, request, among, cluster, 4, Bidirectional(), decode=degrees)
    sent: Counter[str] = Counter()
    for piece in PIECES:
        for exchange in costs.exchanges(replace(DECODE, frames=piece), rank):
            sent[exchange.name] += exchange.bytes
    return dict(sent)


DECODE = Task(0, Kind.DECODE, 0, PIECES[0], 0)


@pytest.mark.parametrize("kind", VAES)
@pytest.mark.parametrize(
    ("world", "degrees"),
    [
        (2, DecodeDegrees(2)),
        (3, DecodeDegrees(3)),
        (2, DecodeDegrees(1, 2)),
        (4, DecodeDegrees(1, 3)),
        (4, DecodeDegrees(2, 2)),
    ],
    ids=str,
)
def test_bytes_are_those_of_the_communicator(
    workers: Any, kind: str, world: int, degrees: DecodeDegrees
) -> None:
    for rank, sent in enumerate(workers.run(world, sent_by, degrees, kind, timeout=60)):
        assert sent == predicted(degrees, kind, rank, world)
