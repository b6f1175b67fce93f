"""What each key has used: requests of the last minute, and seconds of video of the last day."""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from longtake.launch.job_store import StoreBroken
from longtake.launch.server.errors import ApiError
from longtake.launch.server.keys import Limits
from longtake.scheduler.errors import UserError

MINUTE, DAY = 60.0, 86400.0

logger = logging.getLogger(__name__)


class Rates:
    """Requests as a bucket that fills steadily and holds those of a minute. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}  # by owner: requests, at that time

    def take(self, owner: str, limits: Limits) -> None:
        """Count a request; raises ApiError (429) if it is one too many."""
        most = limits.requests_per_minute
        if most is None:
            return
        now = self._clock()
        with self._lock:
            left, then = self._left.get(owner, (float(most), now))
            left = min(most, left + (now - then) * most / MINUTE)
            allowed = left >= 1
            self._left[owner] = (left - allowed, now)
        if not allowed:
            wait = math.ceil((1 - left) * MINUTE / most)
            raise ApiError(
                429,
                f"this key may send {most} requests a minute; try again in {wait} s",
                "rate_limit_exceeded",
                headers={"Retry-After": str(wait)},
            )


class Ledger:
    """Seconds of video that were asked for, by owner; in a file, so that a restart forgives none.

    A video that is deleted counts all the same: it has been made.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the file, or make it; raises UserError if that can't be done."""
        self._clock, self._lock = clock, threading.Lock()
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS used (owner TEXT, at REAL, seconds REAL)"
            )
        except sqlite3.Error as error:
            raise UserError(f"the ledger {path} can't be opened: {error}") from error

    def check(self, owner: str, seconds: float, limits: Limits) -> None:
        """See that a video of that length is within the day's rest.

        Raises:
            ApiError: (429) it is not.
            StoreBroken: the disk refuses.
        """
        most = limits.seconds_per_day
        if most is None:
            return
        try:
            with self._lock:
                self._database.execute("DELETE FROM used WHERE at < ?", (self._clock() - DAY,))
                (used,) = self._database.execute(
                    "SELECT coalesce(sum(seconds), 0) FROM used WHERE owner = ?", (owner,)
                ).fetchone()
        except sqlite3.OperationalError as error:
            raise StoreBroken(f"the ledger can't be written: {error}") from error
        if used + seconds > most:
            raise ApiError(
                429,
                f"this key may make {most:g} s of video a day and has {max(0.0, most - used):g} s "
                f"left; this one is {seconds:g} s long",
                "quota_exceeded",
                "seconds",
            )

    def note(self, owner: str, seconds: float) -> None:
        """A video of that length was accepted, and stays so if the disk refuses to count it."""
        try:
            with self._lock:
                self._database.execute(
                    "INSERT INTO used VALUES (?, ?, ?)", (owner, self._clock(), seconds)
                )
        except sqlite3.OperationalError as error:
            logger.error("%g s of video by %s are not counted: %s", seconds, owner, error)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()
