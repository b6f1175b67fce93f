"""Layers that move between stages while a run goes on, where that is asked for."""

from __future__ import annotations

from longtake.launch.draft import Draft
from longtake.parallel.balance import MeasuredBalance
from longtake.parallel.mesh import Mesh
from longtake.runtime.memory import available_bytes
from longtake.scheduler.flops import layer_weights
from longtake.scheduler.footprint import footprint
from longtake.scheduler.timeline import Record

MOVING = 2  # times the size of a layer that it takes while it moves: as a message, and in place


def measured_balance(draft: Draft, mesh: Mesh, record: Record) -> MeasuredBalance | None:
    """What decides about it; None where layers stay. `record` hears of all that is measured."""
    if not draft.settings.parallel.rebalance:
        return None
    layer = layer_bytes(draft, mesh.rank)
    return MeasuredBalance(
        mesh, draft.spec, record, lambda: available_bytes(draft.device) // (MOVING * layer)
    )


def layer_bytes(draft: Draft, rank: int) -> int:
    """What a worker holds of one layer: its weights, and the keys and values that it keeps."""
    spec, degrees, itemsize = draft.spec, draft.degrees, draft.dtype.itemsize
    held = footprint(spec, draft.request, degrees, itemsize, draft.strategy, rank)
    layers = len(degrees.layers(degrees.place(rank).stage, spec))
    return layer_weights(spec) * itemsize + held.cache // layers
