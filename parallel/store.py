"""Short messages between workers that are no tensors: a table of texts, kept by rank 0."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Protocol

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # it is exported

from longtake.parallel.errors import CommunicationError


class Store(Protocol):
    """A table of texts that all workers share; any thread may use it."""

    def set(self, key: str, text: str) -> None:
        """Write an entry.

        Raises:
            CommunicationError: if rank 0 is gone.
        """
        ...

    def get(self, key: str, timeout: float | None = None) -> str:
        """Read an entry, once it is there.

        Args:
            key: of the entry.
            timeout: seconds to wait for it; None: those of the rendezvous.

        Raises:
            CommunicationError: if it is not there in time, or rank 0 is gone.
        """
        ...

    def take(self, key: str, readers: int) -> str:
        """As `get`, of an entry that so many read, once each: with the last of them it is gone."""
        ...

    def comes(self, key: str, within: float) -> bool:
        """Whether an entry is there within so many seconds; errors as in `set`."""
        ...

    def has(self, key: str) -> bool:
        """Whether an entry is there now; errors as in `set`."""
        ...

    def drop(self, key: str) -> None:
        """Remove an entry that nobody will read any more; errors as in `set`."""
        ...


class SharedStore:
    """A `Store` in the process of rank 0, which ends with it.

    Attributes:
        table: torch's own, under it.
        meshes: how many have been opened with it.
    """

    def __init__(self, table: TCPStore, rank: int, timeout: float) -> None:
        self.table, self.meshes = table, 0
        self._rank, self._timeout = rank, timeout
        self._lock = threading.Lock()
        self._threads = threading.local()

    def set(self, key: str, text: str) -> None:
        """See `Store`."""
        try:
            self._connection().set(key, text)
        except DistError as error:
            raise self._failure("set", key, "rank 0 does not answer") from error

    def get(self, key: str, timeout: float | None = None) -> str:
        """See `Store`."""
        limit = self._timeout if timeout is None else timeout
        if not self.comes(key, limit):
            raise self._failure("get", key, f"nobody set it within {limit:g} s")
        try:
            return str(self._connection().get(key).decode())
        except DistError as error:
            raise self._failure("get", key, "rank 0 does not answer") from error

    def take(self, key: str, readers: int) -> str:
        """See `Store`."""
        text, count = self.get(key), f"{key}/readers"
        try:
            if self._connection().add(count, 1) == readers:
                self._connection().delete_key(key)
                self._connection().delete_key(count)
        except DistError as error:
            raise self._failure("take", key, "rank 0 does not answer") from error
        return text

    def comes(self, key: str, within: float) -> bool:
        """See `Store`."""
        try:
            self._connection().wait([key], timedelta(seconds=within))
        except DistError as error:
            if "timeout" in str(error).lower():
                return False
            raise self._failure("get", key, "rank 0 does not answer") from error
        return True

    def has(self, key: str) -> bool:
        """See `Store`."""
        try:
            return bool(self._connection().check([key]))
        except DistError as error:
            raise self._failure("check", key, "rank 0 does not answer") from error

    def drop(self, key: str) -> None:
        """See `Store`."""
        try:
            self._connection().delete_key(key)
        except DistError as error:
            raise self._failure("drop", key, "rank 0 does not answer") from error

    def _connection(self) -> TCPStore:
        """One for each thread: a connection on which a thread waits is closed to the others."""
        if not hasattr(self._threads, "store"):
            with self._lock:
                self._threads.store = self.table.clone()  # type: ignore[attr-defined]
        connection: TCPStore = self._threads.store
        return connection

    def _failure(self, verb: str, key: str, detail: str) -> CommunicationError:
        return CommunicationError(f"store {verb} {key!r}", self._rank, (0,), detail)


class LocalStore:
    """A `Store` for one worker."""

    def __init__(self) -> None:
        self._entries: dict[str, str] = {}

    def set(self, key: str, text: str) -> None:
        """See `Store`."""
        self._entries[key] = text

    def get(self, key: str, timeout: float | None = None) -> str:
        """See `Store`; nobody else could still set an entry, so this never waits."""
        if key not in self._entries:
            raise CommunicationError(f"store get {key!r}", 0, (), "nobody set it")
        return self._entries[key]

    def take(self, key: str, readers: int) -> str:
        """See `Store`."""
        text = self.get(key)
        self.drop(key)
        return text

    def comes(self, key: str, within: float) -> bool:
        """See `Store`; it never waits either."""
        return key in self._entries

    def has(self, key: str) -> bool:
        """See `Store`."""
        return key in self._entries

    def drop(self, key: str) -> None:
        """See `Store`."""
        self._entries.pop(key, None)
