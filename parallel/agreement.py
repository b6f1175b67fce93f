"""One decision for all workers: rank 0 takes it, the others follow.

No worker decides alone to switch, restore or stop. A decision is put into the control store when
rank 0 comes to it, so nobody waits but for what rank 0 does not know yet either. Once all others
have read it, it is gone: an endless stream decides without end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from longtake.parallel.mesh import Mesh
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule, Verdict
from longtake.scheduler.streams import Conductor, Join, Seated, Turn


class Agreement:
    """What `Schedule.tasks` asks on every worker. `decide` is rank 0's own judgement."""

    def __init__(
        self,
        mesh: Mesh,
        schedule: Schedule,
        decide: Callable[[int], Verdict] | None,
        name: str = "",
    ) -> None:
        """`name` tells the schedule from others of the mesh."""
        if (mesh.rank == 0) != (decide is not None):
            raise ValueError("rank 0 decides, and only rank 0")
        self._mesh, self._script, self._decide = mesh, schedule.script, decide
        self._name = name
        self._told = 0  # changes of the prompt that the others know

    def __call__(self, block: int) -> Verdict:
        """What becomes of a block; prompts that were changed before it are known from now on."""
        key = f"{self._name}block/{block}"
        if self._decide is None:
            told = json.loads(self._mesh.store.take(key, self._mesh.world.size - 1))
            for text, at, begins in told["changes"]:
                self._script.add(text, at, begins)
            layers = None if told["layers"] is None else tuple(told["layers"])
            return Verdict(told["go"], told["kept"], told["until"], layers)
        verdict = self._decide(block)
        if self._mesh.world.size > 1:
            changes = self._script.changes(self._told)
            self._told += len(changes)
            self._mesh.store.set(key, json.dumps(asdict(verdict) | {"changes": changes}))
        return verdict


class StreamsAgreement:
    """What `streams.Batch.tasks` asks on every worker. `conductor` is rank 0's own."""

    def __init__(self, mesh: Mesh, conductor: Conductor | None) -> None:
        if (mesh.rank == 0) != (conductor is not None):
            raise ValueError("rank 0 conducts, and only rank 0")
        self._mesh, self._conductor = mesh, conductor

    def turn(self, tick: int) -> Turn:
        """See `Conductor`."""
        key = f"turn/{tick}"
        if self._conductor is None:
            return _read_turn(json.loads(self._mesh.store.take(key, self._mesh.world.size - 1)))
        turn = self._conductor.turn(tick)
        if self._mesh.world.size > 1:
            self._mesh.store.set(key, json.dumps(asdict(turn)))
        return turn

    def begin(self, stream: Seated) -> Callable[[int], Verdict]:
        """See `Conductor`."""
        decide = None if self._conductor is None else self._conductor.begin(stream)
        name = f"stream/{stream.joined.number}/"
        return Agreement(self._mesh, stream.schedule, decide, name)

    def left(self, stream: Seated) -> None:
        """See `Conductor`."""
        if self._conductor is not None:
            self._conductor.left(stream)


def _read_turn(told: dict[str, Any]) -> Turn:
    joins = []
    for join in told["joins"]:
        request = join["request"]
        cues = tuple(Cue(**cue) for cue in request["cues"])
        joins.append(Join(join["number"], join["seat"], Request(**request | {"cues": cues})))
    return Turn(tuple(joins), tuple(told["takes"]), told["over"])
