"""Writing so that a kill, a power cut or a full disk leaves the old or the new, never a half."""

from __future__ import annotations

import contextlib
import errno
import io
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


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write to an unbuffered file, and have it survive a power cut."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Give a file new content, durably: a kill or a full disk leaves the old content or the new."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb", buffering=0) as file:
            write_all(file, data)
        os.replace(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


class DiskError(UserError):
    """The disk refuses what is to be written; another time it may not."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` about `path` into one line for the user."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> DiskError:
    """One line that says what could not be written, and what to do about a full disk."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "; finished blocks are kept, make room and resume" if full else ""
    return DiskError(f"cannot write {path}: {error.strerror}{advice}")
