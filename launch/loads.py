"""What the workers of a run tell of themselves, as rank 0 hears it."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

from longtake.parallel.beacon import look
from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import Mesh
from longtake.parallel.store import Store
from longtake.scheduler.tally import Load, Tally
from longtake.scheduler.timeline import Record, forget

logger = logging.getLogger(__name__)


class Loads:
    """Those of all ranks, from the signs of life that they give anyway.

    Attributes:
        tally: rank 0's own.
    """

    def __init__(self, record: Record = forget) -> None:
        self.tally = Tally(record)
        self._store: Store | None = None
        self._others: dict[int, Load] = {}
        self._world, self._lock = 1, threading.Lock()

    def listen(self, store: Store, world: int) -> None:
        """The others begin to give signs of life there."""
        self._store, self._world = store, world

    def close(self) -> None:
        """They stop, or will say no more."""
        with self._lock:
            self._store = None

    def now(self) -> dict[int, Load]:
        """What each last told; from any thread."""
        with self._lock:
            if self._store is not None:
                with suppress(CommunicationError):  # the run has ended, and the store with it
                    signs = look(self._store, range(1, self._world))
                    told = {rank: sign.load for rank, sign in signs.items() if sign and sign.load}
                    self._others |= {rank: Load.from_dict(load) for rank, load in told.items()}
            return {0: self.tally.load(), **self._others}

    def collect(self, mesh: Mesh, timeout: float) -> dict[str, Any]:
        """What all workers have sent, by name of transfer, and how long rank 0 has waited.

        Others hand theirs in as soon as they are through; who does not is lost, which whoever waits
        for its end notices next.
        """
        self.close()  # what is handed in is the last word
        sent, waited = Counter(self.tally.sent), round(self.tally.load().waited, 3)
        try:
            for rank in range(1, mesh.degrees.world):
                told = json.loads(mesh.store.get(_key(rank), timeout))
                sent.update(told["sent"])
                self._others[rank] = Load.from_dict(told["load"])
        except CommunicationError as error:
            logger.debug("what was sent is not known: %s", error)
            return {"waited": waited}
        return {"sent": dict(sent), "waited": waited}


def hand_in(store: Store, rank: int, tally: Tally) -> None:
    """Leave what a worker has counted, for rank 0.

    Raises:
        CommunicationError: rank 0 is gone.
    """
    store.set(_key(rank), json.dumps({"sent": tally.sent, "load": tally.load().to_dict()}))


def _key(rank: int) -> str:
    return f"load/{rank}"
