"""Weights are read by one worker of a host at a time, so that a host holds one copy on its way."""

from __future__ import annotations

import fcntl
import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtake.scheduler.errors import UserError

EVERY = 1.0  # seconds between signs of life of whoever reads
LOOK = 0.02  # seconds between looks of whoever waits


@contextmanager
def turn_to_read(patience: float, folder: Path | None = None) -> Iterator[None]:
    """Wait for this host's turn; `folder` is the one for temporary files, if None.

    The lock is a file of this user, and ends with whoever holds it, however that ends. It holds
    the number of that process, which touches it while it lives.

    Raises:
        UserError: the process whose turn it is gave no sign of life for `patience` seconds.
    """
    place = Path(tempfile.gettempdir()) if folder is None else folder
    name = f"longtake-reading-{os.getuid()}.lock"
    with (place / name).open("a+b", buffering=0) as turn:
        _wait(turn, patience)
        turn.truncate(0)
        turn.write(str(os.getpid()).encode())
        over = threading.Event()
        signs = threading.Thread(target=_show, args=(turn, over), name="reading", daemon=True)
        signs.start()
        try:
            yield
        finally:
            over.set()
            signs.join()


def _show(turn: io.FileIO, over: threading.Event) -> None:
    while not over.wait(EVERY):
        os.utime(turn.fileno())


def _wait(turn: io.FileIO, patience: float) -> None:
    heard, since = 0, time.monotonic()
    while not _took(turn):
        sign = os.fstat(turn.fileno()).st_mtime_ns
        if sign != heard:
            heard, since = sign, time.monotonic()
        elif time.monotonic() - since > patience:
            turn.seek(0)
            holder = turn.read().decode()
            raise UserError(
                f"process {holder or '(unknown)'} of this host has its turn to read weights and "
                f"has given no sign of life for {patience:g} s; end it, or wait longer with "
                "parallel.timeout"
            )
        time.sleep(LOOK)


def _took(turn: io.FileIO) -> bool:
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
