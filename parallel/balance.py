"""Stages tell how long their launches take, and rank 0 says when layers should move."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import asdict
from time import monotonic
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
    """By what launches took since the last move. Lanes may note in threads of their own.

    A worker that decodes beside its layers is busy with both; what can't be done at once counts
    once.
    """

    def __init__(
        self, mesh: Mesh, spec: ModelSpec, record: Record, room: Callable[[], int]
    ) -> None:
        """`record` hears of everything too; `room` says how many layers more this worker's memory
        takes."""
        stages = range(mesh.degrees.stages)
        self._layers = tuple(len(mesh.degrees.layers(stage, spec)) for stage in stages)
        self._mesh, self._record, self._room = mesh, record, room
        self._moves = self._told = self._read = 0  # rounds count from the last move
        self._lock = threading.Lock()
        self._launches, self._own, self._busy = 0, 0.0, 0.0  # since the last round
        self._until = 0.0  # when the latest of what this worker did was over
        self._moved_at = -math.inf

    def note(self, action: Action) -> None:
        """See `Balance`. On a GPU, what was done before a move may be told only after it."""
        self._record(action)
        if action.activity is not Activity.COMPUTE or action.start < self._moved_at:
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
        """See `Balance`; by the latest round that all stages have told."""
        latest: list[StagePace] | None = None
        while all(self._mesh.store.has(key) for key in self._keys(self._read)):
            latest = []
            for key in self._keys(self._read):
                latest.append(StagePace(**json.loads(self._mesh.store.get(key))))
                self._mesh.store.drop(key)
            self._read += 1
        return None if latest is None else balanced(latest)

    def moved(self, layers: tuple[int, ...]) -> None:
        """See `Balance`."""
        with self._lock:
            self._layers, self._moved_at = layers, monotonic()
            self._moves += 1
            self._told = self._read = 0
            self._reset()

    def _keys(self, number: int) -> list[str]:
        """Where the stages tell a round."""
        return [f"pace/{self._moves}/{number}/{stage}" for stage in range(len(self._layers))]

    def _tell(self) -> None:
        if self._mesh.lane.index == 0:
            stage = self._mesh.place.stage
            own, beside = self._own / LAUNCHES, max(0.0, self._busy - self._own) / LAUNCHES
            pace = StagePace(self._layers[stage], own, beside, self._room())
            self._mesh.store.set(self._keys(self._told)[stage], json.dumps(asdict(pace)))
        self._told += 1
        self._reset()

    def _reset(self) -> None:
        self._launches, self._own, self._busy = 0, 0.0, 0.0
