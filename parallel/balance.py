"""Stages tell how long their launches take, and rank 0 says when layers should move."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from typing import Protocol

from longtake.parallel.mesh import Mesh
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.rebalance import StagePace, balanced
from longtake.scheduler.task import Kind
from longtake.scheduler.timeline import MAIN, Action, Activity, Record

LAUNCHES = 16  # of which each stage tells the mean


class Balance(Protocol):
    """Decides about layers; on all workers of a run, or on none."""

    def note(self, action: Action) -> None:
        """A `Record` of what this worker does."""
        ...

    def propose(self) -> tuple[int, ...] | None:
        """On rank 0: the layers that each stage should have from now on; None: as they are."""
        ...

    def moved(self, layers: tuple[int, ...]) -> None:
        """They have moved."""
        ...


class MeasuredBalance:
    """By what launches take, from one move to the next. Lanes may note in threads of their own.

    A worker that decodes beside its layers is busy with both; what can't be done at once counts
    once.
    """

    def __init__(self, mesh: Mesh, spec: ModelSpec, record: Record) -> None:
        """`record` hears of everything too."""
        stages = range(mesh.degrees.stages)
        self._layers = tuple(len(mesh.degrees.layers(stage, spec)) for stage in stages)
        self._mesh, self._record = mesh, record
        self._told = self._read = 0  # rounds
        self._lock = threading.Lock()
        self._launches, self._own, self._busy = 0, 0.0, 0.0  # since the last round
        self._until = 0.0  # when the latest of what this worker did was over

    def note(self, action: Action) -> None:
        """See `Balance`."""
        self._record(action)
        if action.activity is not Activity.COMPUTE:
            return
        with self._lock:
            launch = action.lane == MAIN and action.name.startswith((Kind.DENOISE, Kind.COMMIT))
            self._launches += launch
            self._own += action.stop - action.start if launch else 0.0
            self._busy += max(0.0, action.stop - max(action.start, self._until))
            self._until = max(self._until, action.stop)
            if self._launches == LAUNCHES:
                self._tell()

    def propose(self) -> tuple[int, ...] | None:
        """See `Balance`; stages that are behind are asked again at the next block."""
        stages = range(len(self._layers))
        keys = [f"pace/{self._read}/{stage}" for stage in stages]
        if not all(self._mesh.store.has(key) for key in keys):
            return None
        self._read += 1
        paces = [StagePace(**json.loads(self._mesh.store.get(key))) for key in keys]
        if tuple(pace.layers for pace in paces) != self._layers:
            return None  # they were measured before the last move
        return balanced(paces)

    def moved(self, layers: tuple[int, ...]) -> None:
        """See `Balance`."""
        with self._lock:
            self._layers = layers
            self._reset()

    def _tell(self) -> None:
        if self._mesh.lane.index == 0:
            stage = self._mesh.place.stage
            beside = max(0.0, self._busy - self._own)
            pace = StagePace(self._layers[stage], self._own / LAUNCHES, beside / LAUNCHES)
            self._mesh.store.set(f"pace/{self._told}/{stage}", json.dumps(asdict(pace)))
        self._told += 1
        self._reset()

    def _reset(self) -> None:
        self._launches, self._own, self._busy = 0, 0.0, 0.0
