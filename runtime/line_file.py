"""A file of durable JSON lines to append to; those that an earlier epoch adds late don't count."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from longtake.runtime.durable import sync, write_all

logger = logging.getLogger(__name__)

EPOCH = "epoch"  # the key of whose line it is; absent: 0


class LineFile:
    """A line is durable when `append` returns.

    Of an epoch above 0 the first line is a mark: what an earlier epoch appends after it, because it
    was stopped on the way there, is not read.
    """

    def __init__(self, path: Path, epoch: int = 0) -> None:
        self._path, self._epoch = path, epoch
        self._file = path.open("a+b", buffering=0)
        self._cut_torn_line()
        sync(path.parent)
        if epoch:
            self.append({})

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        data = self._file.readall()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            logger.warning("%s ends in a torn line, which is cut off", self._path)
            self._file.truncate(whole)

    def read(self) -> list[dict[str, Any] | None]:
        """All lines that count, in order; None stands for a damaged one."""
        self._file.seek(0)
        latest, lines = 0, list[dict[str, Any] | None]()
        for line in map(parse, self._file.readall().splitlines()):
            epoch = 0 if line is None else line.pop(EPOCH, 0)
            if line is None or (line and epoch >= latest):
                lines.append(line)
            latest = max(latest, epoch)
        return lines

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; after an error the file is as it was."""
        end = os.fstat(self._file.fileno()).st_size
        marked = {**line, EPOCH: self._epoch} if self._epoch else line
        try:
            write_all(self._file, json.dumps(marked).encode() + b"\n")
        except BaseException:  # an interrupt too: half a line would spoil the next one
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def parse(line: bytes) -> dict[str, Any] | None:
    """A JSON object; None where it is none."""
    try:
        value = json.loads(line)
    except ValueError:  # neither JSON nor UTF-8
        return None
    return value if isinstance(value, dict) else None
