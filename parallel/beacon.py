"""Who is still there, and what was each worker doing last.

Every worker tells the control store, once a second, that it lives and what it is at. When
communication fails, rank 0 reads there whom it has lost.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

from longtake.parallel.errors import CommunicationError
from longtake.parallel.store import Store

EVERY = 1.0  # seconds between signs of life


@dataclass(frozen=True)
class Sign:
    """A worker's last sign of life. `failed` tells why it gave up, where it did."""

    rank: int
    host: str
    pid: int
    beat: int
    action: str
    failed: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"worker {self.rank} (host {self.host}, process {self.pid})"


class Beacon:
    """While entered, gives signs of life. Leaving it with an error leaves that as the last sign."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank = store, rank
        self._action, self._beat = "starting", 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._shine, name="beacon", daemon=True)

    def at(self, action: str) -> None:
        """What the worker is doing from now on."""
        self._action = action

    def __enter__(self) -> Self:
        self._tell()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if error is not None:
            try:
                self._tell(f"{type(error).__name__}: {error}")
            except CommunicationError:  # the store went down with the worker that hosts it
                return

    def _shine(self) -> None:
        while not self._over.wait(EVERY):
            try:
                self._tell()
            except CommunicationError:  # likewise; the main thread will notice on its own
                return

    def _tell(self, failed: str | None = None) -> None:
        self._beat += 1
        host, pid = socket.gethostname(), os.getpid()
        sign = Sign(self._rank, host, pid, self._beat, self._action, failed)
        self._store.set(f"beacon/{self._rank}", json.dumps(asdict(sign)))


def look(store: Store, ranks: range) -> dict[int, Sign | None]:
    """The last sign of every rank; None where there has been none."""
    keys = {rank: f"beacon/{rank}" for rank in ranks}
    return {
        rank: Sign(**json.loads(store.get(key))) if store.has(key) else None
        for rank, key in keys.items()
    }


def find_lost(store: Store, ranks: range, patience: float = 3 * EVERY) -> str:
    """Say who is to blame when communication has failed; takes `patience` seconds.

    That is whoever fell silent; else whoever failed for a reason of its own; else whoever still
    works while the others gave up on waiting.
    """
    before = look(store, ranks)
    time.sleep(patience)
    signs = look(store, ranks)
    told = [f"worker {rank} never gave a sign of life" for rank in ranks if signs[rank] is None]
    known = [sign for sign in signs.values() if sign is not None]
    silent = [s for s in known if s.failed is None and s == before[s.rank]]
    told += [f"{s.name} fell silent; it was last at: {s.action}" for s in silent]
    if not told:
        own = [
            s for s in known if s.failed and not s.failed.startswith(CommunicationError.__name__)
        ]
        told = [f"{s.name} failed at {s.action}: {s.failed}" for s in own]
    if not told:
        stuck = [s for s in known if s.failed is None]
        told = [f"{s.name} does not answer; it is at: {s.action}" for s in stuck or known]
    return "; ".join(told)
