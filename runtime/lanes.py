"""A lane that works beside the others: a thread with a short queue before it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class BackgroundLane(Generic[Item]):
    """Does `work` on each item in order, in a thread. The queue is short, so memory stays bounded.

    The first error in the thread is its last work: it is raised by every `put` and `close` that
    follows, and later items are dropped, so what was done has no gaps and no `put` waits forever.
    """

    def __init__(self, name: str, work: Callable[[Item], None], depth: int = 2) -> None:
        self._work = work
        self._items: queue.Queue[Item | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            if self._error is None:
                try:
                    self._work(item)
                except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                    self._error = error

    def put(self, item: Item) -> None:
        """Queue an item; waits while the lane is too far behind."""
        self._raise()
        self._items.put(item)

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        if self._thread.is_alive():
            self._items.put(None)
            self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
