"""Groups of processes that outlive the one that started them, and are to be ended by the next."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

PATIENCE = 10.0  # seconds for the system to bury them


class Leftovers:
    """A folder with a file for each process at work: its id, and when it started.

    The second tells it from another process that got the same id later.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def add(self, pid: int) -> Path:
        """Note a process that leads its group; returns the file, to be removed at its end."""
        record = self._folder / str(pid)
        record.write_text(_start_of(pid) or "")
        return record

    def end_all(self) -> None:
        """End all that are noted, with all of their groups, and wait until they are gone."""
        for record in self._folder.iterdir():
            pid, started = int(record.name), record.read_text()
            if started and started == _start_of(pid):
                _end(pid)
            record.unlink()


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    end = time.monotonic() + PATIENCE
    while _start_of(pid) is not None and time.monotonic() < end:
        time.sleep(0.02)


def _start_of(pid: int) -> str | None:
    """In ticks since the system began; None: there is no such process, or it is a zombie."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *others = told.rpartition(")")[2].split()
    return None if state == "Z" else others[18]
