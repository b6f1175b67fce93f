"""Weights are read by one worker of a host at a time, so that a host holds one copy on its way."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn_to_read(folder: Path | None = None) -> Iterator[None]:
    """Wait for this host's turn; `folder` is the one for temporary files, if None.

    The lock is a file of this user, and ends with whoever holds it, however that ends.
    """
    place = Path(tempfile.gettempdir()) if folder is None else folder
    with (place / f"longtake-reading-{os.getuid()}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
