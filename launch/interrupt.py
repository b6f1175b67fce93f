"""Ctrl-C and SIGTERM: the first asks for a clean end, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """While entered, asks for an end at the first signal, and ends the process at the second.

    Python calls handlers of signals in the main thread, once it is back from the library that it is
    in; and there it may wait for a worker that hangs. So a thread of its own hears of signals too.
    What is on disk is whole at every moment, so ending at once loses only the block in the making.
    """

    def __init__(
        self, stop: Callable[[], None], heard: Callable[[], None], leave: Callable[[], None]
    ) -> None:
        """`stop` is called in the main thread, and may raise; `heard` at the first signal and
        `leave` at the second, right before the process ends, in the other one."""
        self._stop, self._heard, self._leave = stop, heard, leave
        self._before: dict[signal.Signals, Any] = {}
        self.received: int | None = None

    @property
    def exit_code(self) -> int:
        """What the shell expects of a process that a signal ended."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> Self:
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        self._wakeup = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
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
        signal.set_wakeup_fd(self._wakeup)
        self._outbox.close()
        self._thread.join()
        self._inbox.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            self._stop()

    def _listen(self) -> None:
        """Each signal is a byte, its number."""
        before = False
        while number := self._inbox.recv(1):
            if number[0] not in SIGNALS:
                continue
            if before:
                self._leave()
                os._exit(128 + number[0])
            before = True
            self._heard()
