"""Writing so that a kill, a power cut or a full disk leaves the old or the new, never a half."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from longtake.scheduler.errors import UserError


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` about `path` into one line for the user."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> UserError:
    """One line that says what could not be written, and what to do about a full disk."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "; finished blocks are kept, make room and resume" if full else ""
    return UserError(f"cannot write {path}: {error.strerror}{advice}")
