"""One decision about every block for all workers: rank 0 takes it, the others follow.

No worker decides alone to switch, restore or stop. The decision is put into the control store when
rank 0 begins the block, so nobody waits but for what rank 0 does not know yet either.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from longtake.parallel.mesh import Mesh
from longtake.scheduler.schedule import Schedule, Verdict


class Agreement:
    """What `Schedule.tasks` asks on every worker. `decide` is rank 0's own judgement."""

    def __init__(
        self, mesh: Mesh, schedule: Schedule, decide: Callable[[int], Verdict] | None
    ) -> None:
        if (mesh.rank == 0) != (decide is not None):
            raise ValueError("rank 0 decides, and only rank 0")
        self._mesh, self._script, self._decide = mesh, schedule.script, decide
        self._told = 0  # changes of the prompt that the others know

    def __call__(self, block: int) -> Verdict:
        """What becomes of a block; prompts that were changed before it are known from now on."""
        key = f"block/{block}"
        if self._decide is None:
            told = json.loads(self._mesh.store.get(key))
            for text, at, begins in told["changes"]:
                self._script.add(text, at, begins)
            return Verdict(told["go"], told["kept"], told["until"])
        verdict = self._decide(block)
        if self._mesh.world.size > 1:
            changes = self._script.changes(self._told)
            self._told += len(changes)
            told = {"go": verdict.go, "kept": verdict.kept, "until": verdict.until}
            self._mesh.store.set(key, json.dumps(told | {"changes": changes}))
        return verdict
