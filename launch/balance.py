"""Layers that move between stages while a run goes on, where that is asked for."""

from __future__ import annotations

from longtake.launch.draft import Draft
from longtake.parallel.balance import MeasuredBalance
from longtake.parallel.mesh import Mesh
from longtake.scheduler.timeline import Record


def measured_balance(draft: Draft, mesh: Mesh, record: Record) -> MeasuredBalance | None:
    """What decides about it; None where layers stay. `record` hears of all that is measured."""
    if not draft.settings.parallel.rebalance:
        return None
    return MeasuredBalance(mesh, draft.spec, record)
