"""Who may write a run directory: one process at a time, and of several epochs only the latest.

A lock alone does not keep a run from a process that was given up for dead, stopped or cut off, and
then goes on. So whoever hands out runs counts an epoch up each time; a lock of a higher epoch ends
all lower ones, whether or not their processes are still there. They ask before they publish.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from longtake.scheduler.errors import UserError

LOCK = "lock"


class Fenced(UserError):
    """A run directory has gone over to a later epoch."""


class Hold:
    """A run directory, held until it is closed or the process ends, however it ends.

    Attributes:
        epoch: of whoever holds it; 0 where nobody counts.
    """

    def __init__(self, run_dir: Path, epoch: int | None = None) -> None:
        """Hold a directory, from those of lower epochs too; None: of the epoch that it is at.

        Raises:
            UserError: another process holds it.
            Fenced: it is at a higher epoch.
            OSError: it can't be written.
        """
        self.epoch = max(_epochs(run_dir), default=0) if epoch is None else epoch
        self._run_dir, self._path = run_dir, run_dir / _name(self.epoch)
        self._file = self._path.open("wb", buffering=0)
        try:
            self._take()
        except BaseException as error:
            if isinstance(error, Fenced):
                self._path.unlink(missing_ok=True)
            self._file.close()
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self._run_dir} is in use by another process") from error
        self.check()
        for epoch in _epochs(self._run_dir):
            if epoch < self.epoch:
                (self._run_dir / _name(epoch)).unlink(missing_ok=True)

    def check(self) -> None:
        """See that the directory is still held; call it before anything is published.

        Raises:
            Fenced: a later epoch has it.
        """
        latest = max(_epochs(self._run_dir), default=0)
        if latest != self.epoch:
            raise Fenced(f"{self._run_dir} went over to epoch {latest}, this is {self.epoch}")

    def remove(self) -> None:
        """Remove what holds it from the directory, which is about to be removed."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go."""
        self._file.close()


def is_lock(path: Path) -> bool:
    """Whether a file of a run directory is there for its hold alone."""
    return _epoch_of(path.name) is not None


def _name(epoch: int) -> str:
    return f"{LOCK}.{epoch}" if epoch else LOCK


def _epoch_of(name: str) -> int | None:
    stem, dot, number = name.partition(".")
    if stem != LOCK or (dot and not number.isdecimal()):
        return None
    return int(number) if dot else 0


def _epochs(run_dir: Path) -> list[int]:
    found = (_epoch_of(name) for name in os.listdir(run_dir))
    return [epoch for epoch in found if epoch is not None]
