"""Ctrl-C and SIGTERM: the first asks for a clean end, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h"


class Interrupt:
    """While entered, calls `stop` at the first signal, in the main thread.

    After it the signals have their default effect again. What is on disk is whole at every moment,
    so ending at once loses only the block in the making.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._before: dict[signal.Signals, Any] = {}
        self.received: int | None = None

    @property
    def exit_code(self) -> int:
        """What the shell expects of a process that a signal ended."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for every in SIGNALS:
            signal.signal(every, signal.SIG_DFL)
        if sys.stderr.isatty():  # a live display hides it, and may not get to show it again
            os.write(sys.stderr.fileno(), SHOW_CURSOR)
        self._stop()
