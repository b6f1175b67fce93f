"""Lanes that work beside the others: a thread with a queue before or after it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class BackgroundLane(Generic[Item]):
    """Does `work` on each item in order, in a thread.

    The first error in the thread is its last work: it is raised by every call that follows, and
    later items are dropped, so what was done has no gaps and nobody waits forever.
    """

    def __init__(self, name: str, work: Callable[[Item], None], depth: int | None = 2) -> None:
        """At most `depth` items wait, so memory stays bounded; None: whoever puts them in sees to
        that by `wait_for_room`."""
        self._work, self._depth = work, depth
        self._items: deque[Item | None] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Queue an item; waits while the lane is too far behind."""
        if self._depth is not None:
            self.wait_for_room(self._depth)
        self._put(item)
        self._raise()

    def wait_for_room(self, depth: int) -> None:
        """Wait until fewer than `depth` items wait for their turn."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < depth or self._error is not None)
        self._raise()

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        if self._thread.is_alive():
            self._put(None)
            self._thread.join()
        self._raise()

    def _put(self, item: Item | None) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def _take(self) -> Item | None:
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            self._changed.notify_all()
            return self._items.popleft()

    def _run(self) -> None:
        while (item := self._take()) is not None:
            if self._error is not None:
                continue
            try:
                self._work(item)
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                with self._changed:
                    self._error = error
                    self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


class Ahead(Iterator[Item]):
    """Takes items out of an iterator in a thread, `depth` ahead of who takes them from here.

    It begins with the first that is asked for. An error of the iterator is raised in its turn.
    """

    def __init__(
        self,
        name: str,
        items: Iterable[Item],
        depth: int,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """`told` hears, in the thread, of every item that is there, and of the end."""
        self._items, self._depth, self._told = items, depth, told
        self._ready: deque[Item] = deque()
        self._error: BaseException | None = None
        self._begun = self._over = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __next__(self) -> Item:
        self._begin()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._over)
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
            if self._error is not None:
                raise self._error
            raise StopIteration

    def has(self, count: int) -> bool:
        """Whether so many items can be taken without waiting, or else all that are left."""
        self._begin()
        with self._changed:
            return self._over or len(self._ready) >= count

    def close(self) -> None:
        """Take no more, and give none; returns at once, whatever the thread waits for."""
        with self._changed:
            self._closed = self._over = self._begun = True
            self._ready.clear()
            self._changed.notify_all()

    def _begin(self) -> None:
        with self._changed:
            if not self._begun:
                self._begun = True
                self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._ready) < self._depth or self._closed)
                    if self._closed:
                        return
                    self._ready.append(item)
                    self._changed.notify_all()
                self._told()
        except BaseException as error:  # noqa: BLE001 - raised to the one who takes the items
            self._error = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            self._told()
