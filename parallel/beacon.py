"""Who is still there, and what was each worker doing last.

Every worker tells the control store, once a second, that it lives and what it is at. There rank 0
reads whom it has lost when communication fails, and the others that rank 0 is gone.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from types import TracebackType
from typing import Any, Self

from longtake.parallel.errors import CommunicationError
from longtake.parallel.store import Store

EVERY = 1.0  # seconds between signs of life
GRACE = 5.0  # seconds for a worker to end by itself, once it could know that rank 0 has
OVER = "over"  # the entry that tells the others that rank 0 has ended


class Stage(IntEnum):
    """How far a worker has come."""

    STARTED = 0
    READY = 1  # it knows what to do, and can
    LOADED = 2  # it has its weights
    DONE = 3


@dataclass(frozen=True)
class Sign:
    """A worker's last sign of life.

    Attributes:
        failed: why it gave up, where it did.
        load: what it has to tell of itself besides.
    """

    rank: int
    host: str
    pid: int
    beat: int
    action: str
    stage: Stage = Stage.STARTED
    failed: str | None = None
    load: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people."""
        return f"worker {self.rank} (host {self.host}, process {self.pid})"

    @property
    def own_failure(self) -> bool:
        """Whether it gave up for a reason of its own, not because it missed another worker."""
        return self.failed is not None and not self.failed.startswith(CommunicationError.__name__)


class Beacon:
    """While entered, gives signs of life. Leaving it with an error leaves that as the last sign.

    One thread alone speaks to the store, so that signs stay in order.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store = store
        self._sign = Sign(rank, socket.gethostname(), os.getpid(), 0, "starting")
        self._over, self._wake = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._load: Callable[[], Mapping[str, Any]] = dict
        self._thread = threading.Thread(target=self._shine, name="beacon", daemon=True)

    def at(self, action: str) -> None:
        """What the worker is doing from now on."""
        with self._lock:
            self._sign = replace(self._sign, action=action)

    def reach(self, stage: Stage) -> None:
        """The worker has come so far, which is told at once."""
        with self._lock:
            self._sign = replace(self._sign, stage=stage)
        self._wake.set()

    def carry(self, load: Callable[[], Mapping[str, Any]]) -> None:
        """From now on, signs carry what this returns, which must be fit for JSON."""
        self._load = load

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = None if error is None else _first_line(error)
        stage = Stage.DONE if error is None else self._sign.stage
        with self._lock:
            self._sign = replace(self._sign, stage=stage, failed=failed)
        self._over.set()
        self._wake.set()
        self._thread.join(GRACE)  # a network that swallows everything would hold it for ever

    def _shine(self) -> None:
        last = False
        while not last:
            self._wake.clear()
            last = self._over.is_set()
            with self._lock:
                beat, load = self._sign.beat + 1, self._load()
                sign = self._sign = replace(self._sign, beat=beat, load=load)
            try:
                self._store.set(_key(sign.rank), json.dumps(asdict(sign)))
            except CommunicationError:  # rank 0 took the store with it; `Guard` notices too
                return
            self._wake.wait(0 if last else EVERY)


class Guard:
    """While entered, sees to it that a worker doesn't outlive rank 0, whatever it hangs in.

    Calls `give_up` with a reason, in a thread of its own, when rank 0 has given no sign of life for
    `patience` seconds, or has ended for `GRACE`. By then the worker should have noticed by itself.
    """

    def __init__(self, store: Store, patience: float, give_up: Callable[[str], None]) -> None:
        self._store, self._give_up = store, give_up
        self._patience, self._why = patience, f"rank 0 was silent for {patience:g} s"
        self._news, self._left = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        for target in (self._listen, self._watch):
            threading.Thread(target=target, name="guard", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._news.set()

    def _listen(self) -> None:
        """May be held by the network for ever, which is no news either."""
        heard = None
        try:
            while not self._left.is_set() and not self._store.has(OVER):
                sign = look(self._store, range(1))[0]
                if sign != heard:
                    heard = sign
                    self._news.set()
                self._left.wait(EVERY)
        except CommunicationError:  # it took the store with it
            pass
        self._patience, self._why = GRACE, "rank 0 has ended"
        self._news.set()

    def _watch(self) -> None:
        while self._news.wait(self._patience):
            if self._left.is_set():
                return
            self._news.clear()
        if not self._left.is_set():
            self._give_up(self._why)


def look(store: Store, ranks: range) -> dict[int, Sign | None]:
    """The last sign of every rank; None where there has been none."""
    return {rank: _read(store.get(_key(rank))) if store.has(_key(rank)) else None for rank in ranks}


def gather(
    store: Store,
    ranks: range,
    stage: Stage,
    patience: float,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Wait until all have come so far, as long as each gives a new sign within `patience` seconds.

    `check` is called meanwhile, and may raise.

    Raises:
        CommunicationError: a worker failed, or fell silent.
    """
    heard: dict[int, tuple[Sign | None, float]] = {}
    while True:
        signs, now = look(store, ranks), time.monotonic()
        for rank, sign in signs.items():
            if sign is not None and sign.failed is not None:
                raise CommunicationError(f"waiting for {stage.name.lower()}", 0, (rank,), "failed")
            if rank not in heard or heard[rank][0] != sign:
                heard[rank] = sign, now
        missing = [r for r, sign in signs.items() if sign is None or sign.stage < stage]
        if not missing:
            return
        silent = [rank for rank in missing if now - heard[rank][1] > patience]
        if silent:
            detail = f"no sign of life within {patience:g} s"
            raise CommunicationError(f"waiting for {stage.name.lower()}", 0, silent, detail)
        check()
        time.sleep(EVERY / 20)


def find_lost(store: Store, ranks: range, patience: float = 3 * EVERY) -> str:
    """Say who is to blame when communication has failed; may take `patience` seconds.

    That is whoever failed for a reason of its own; else whoever fell silent; else whoever still
    works while the others gave up on waiting.
    """
    before = look(store, ranks)
    own = [s for s in before.values() if s is not None and s.own_failure]
    if not own:
        time.sleep(patience)
    signs = look(store, ranks)
    known = [sign for sign in signs.values() if sign is not None]
    own = [sign for sign in known if sign.own_failure]
    if own:
        return "; ".join(f"{s.name} failed at {s.action}: {s.failed}" for s in own)
    told = [f"worker {rank} never gave a sign of life" for rank in ranks if signs[rank] is None]
    working = [s for s in known if s.failed is None and s.stage < Stage.DONE]
    told += [
        f"{s.name} fell silent; it was last at: {s.action}" for s in working if s == before[s.rank]
    ]
    told = told or [f"{s.name} does not answer; it is at: {s.action}" for s in working]
    told = told or [f"{s.name} gave up at {s.action}: {s.failed}" for s in known if s.failed]
    return "; ".join(told) or "all other workers were done"


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _key(rank: int) -> str:
    return f"beacon/{rank}"


def _read(text: str) -> Sign:
    told = json.loads(text)
    return Sign(**{**told, "stage": Stage(told["stage"])})
