"""Waiting for jobs to change: one thread asks the central scheduler on behalf of all who do."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from longtake.scheduler.errors import UserError

if TYPE_CHECKING:
    from longtake.launch.central import Central

PERIOD = 0.2  # seconds between two looks


class Watch:
    """Whoever waits for a job costs a future, so hundreds may wait and no thread is held."""

    def __init__(self, central: Central) -> None:
        self._central = central
        self._watched: Counter[str] = Counter()
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()
        self._bell: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look; call it in the event loop of those who wait."""
        self._loop, self._bell = asyncio.get_running_loop(), asyncio.Event()
        self._thread.start()

    def close(self) -> None:
        """Wake everybody for the last time."""
        self._over.set()
        self._thread.join()
        if self._bell is not None:
            self._bell.set()

    @property
    def over(self) -> bool:
        """Whether the server ends, so that nobody should wait any longer."""
        return self._over.is_set()

    @contextmanager
    def of(self, job: str) -> Iterator[None]:
        """As long as this is open, `changed` knows of the job."""
        with self._lock:
            self._watched[job] += 1
        try:
            yield
        finally:
            with self._lock:
                self._watched[job] -= 1
                if not self._watched[job]:
                    del self._watched[job]
                    self._seen.pop(job, None)

    async def changed(self, job: str, seen: int, timeout: float) -> int:
        """Wait for something new of a job; returns a number to be given as `seen` the next time."""
        try:
            async with asyncio.timeout(timeout):
                while not self.over and self._seen.get(job, 0) == seen:
                    assert self._bell is not None
                    await self._bell.wait()
        except TimeoutError:
            pass
        return self._seen.get(job, 0)

    def _look(self) -> None:
        while not self._over.wait(PERIOD):
            with self._lock:
                jobs = list(self._watched)
            rung = False
            for job in jobs:
                rung = self._ask(job) or rung
            if rung:
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._ring)

    def _ask(self, job: str) -> bool:
        seen = self._seen.get(job, 0)
        try:
            now = self._central.changed(job, seen, 0)
        except UserError:
            now = -1  # deleted
        with self._lock:
            if job in self._watched:
                self._seen[job] = now
        return now != seen

    def _ring(self) -> None:
        assert self._bell is not None
        self._bell.set()
        self._bell = asyncio.Event()
