"""Messages between processes on CPUs, by gloo, which moves the bytes in threads of its own."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import cycle
from queue import SimpleQueue
from time import monotonic
from typing import Protocol

from torch import Tensor
from torch.distributed import Work

from longtake.parallel.errors import CommunicationError
from longtake.parallel.wire import Membership, Message, payload, peers_of
from longtake.scheduler.timeline import Action, Activity

# A receive may be posted long before the peer has anything to send, so the deadline belongs to
# whoever stands still, not to the watcher.
PATIENCE = timedelta(days=365)
SHORTEST = 0.001  # gloo takes a timeout of zero for none


class GlooBackend(Protocol):
    """What is used of torch's ProcessGroupGloo, which has no types for it."""

    def send(self, tensors: list[Tensor], peer: int, tag: int, /) -> Work: ...
    def recv(self, tensors: list[Tensor], peer: int, tag: int, /) -> Work: ...
    def abort(self) -> None: ...


class GlooTransfer:
    """Messages on their way, followed by the wire's watcher."""

    def __init__(
        self,
        wire: GlooWire,
        action: str,
        sends: Sequence[Message],
        receives: Sequence[Message],
        works: Sequence[tuple[int, Work]],
    ) -> None:
        self.wire, self.member = wire, wire.member
        self.action, self.works = action, works
        self.tensors = (*sends, *receives)  # alive until the bytes have moved
        self.peers = peers_of(sends, receives)
        self.bytes_out, self.bytes_in = payload(sends), payload(receives)
        self.sent = self.member.sent(sends)
        self.start = monotonic()
        self.error: CommunicationError | None = None
        self.over = threading.Event()

    def wait(self) -> None:
        """See `Transfer`."""
        if not self.over.is_set():
            start = monotonic()
            over = self.over.wait(self.member.timeout)
            self.note(Activity.WAIT, start)
            if not over:
                self.error = self.failure(self.peers, late(self.member.timeout))
        if self.error is not None:
            self.wire.failed = self.error
            raise self.error

    def finish(self, deadline: float | None = None) -> None:
        """Wait for gloo itself, until `deadline` if there is one, and note how long it took."""
        for peer, work in self.works:
            left = PATIENCE
            if deadline is not None:
                left = timedelta(seconds=max(SHORTEST, deadline - monotonic()))
            try:
                work.wait(left)
            except RuntimeError as error:
                timed_out = deadline is not None and monotonic() >= deadline
                detail = late(self.member.timeout) if timed_out else explain(error)
                self.error = self.failure([peer], detail)
                break
        else:
            self.note(Activity.TRANSFER, self.start, self.bytes_out, self.sent)
        self.over.set()

    def note(
        self, activity: Activity, start: float, size: int = 0, to: tuple[tuple[int, int], ...] = ()
    ) -> None:
        """Record what lasted from `start` until now."""
        rank, stop = self.member.rank, monotonic()
        self.member.record(Action(rank, activity, self.action, start, stop, size, to=to))

    def failure(self, peers: Sequence[int], detail: str) -> CommunicationError:
        """An error that names this transfer."""
        sizes = f"{self.bytes_out} bytes out, {self.bytes_in} in"
        return self.member.failure(self.action, peers, f"{detail} ({sizes})")


class GlooWire:
    """A `Wire` over a gloo process group of its own. What `failed` once is not tried again."""

    def __init__(self, backend: GlooBackend, member: Membership) -> None:
        self._backend, self.member = backend, member
        # Numbered for each peer and direction, so that messages can't overtake each other.
        self._sent: defaultdict[int, Iterator[int]] = defaultdict(numbers)
        self._received: defaultdict[int, Iterator[int]] = defaultdict(numbers)
        self.failed: CommunicationError | None = None
        self._watched: SimpleQueue[GlooTransfer | None] = SimpleQueue()
        self._watcher: threading.Thread | None = None

    def post(
        self, action: str, sends: Sequence[Message], receives: Sequence[Message]
    ) -> GlooTransfer:
        """See `Wire`."""
        transfer = self._begin(action, sends, receives)
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="transfers", daemon=True)
            self._watcher.start()
        self._watched.put(transfer)
        return transfer

    def run(self, action: str, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """See `Wire`."""
        transfer = self._begin(action, sends, receives)
        start = monotonic()
        transfer.finish(start + self.member.timeout)
        transfer.note(Activity.WAIT, start)
        if transfer.error is not None:
            self.failed = transfer.error
            raise transfer.error

    def settle(self) -> None:
        """See `Wire`."""

    def close(self) -> None:
        """See `Wire`."""
        self._watched.put(None)
        self._backend.abort()

    def _begin(
        self, action: str, sends: Sequence[Message], receives: Sequence[Message]
    ) -> GlooTransfer:
        if self.failed is not None:
            raise self.failed
        works: list[tuple[int, Work]] = []
        try:
            for message in receives:
                tag = next(self._received[message.peer])
                work = self._backend.recv([message.tensor], message.peer, tag)
                works.append((message.peer, work))
            for message in sends:
                tag = next(self._sent[message.peer])
                work = self._backend.send([message.tensor], message.peer, tag)
                works.append((message.peer, work))
        except RuntimeError as error:
            peers = peers_of(sends, receives)
            self.failed = self.member.failure(action, peers, explain(error))
            raise self.failed from error
        return GlooTransfer(self, action, sends, receives, works)

    def _watch(self) -> None:
        """Follow transfers in the order of their posting, so that their end is timed truly."""
        while (transfer := self._watched.get()) is not None:
            transfer.finish()
            if transfer.error is not None:
                self.failed = transfer.error


def numbers() -> Iterator[int]:
    """Tags for messages; gloo takes 31 bits."""
    return cycle(range(2**31))


def late(seconds: float) -> str:
    """The detail of a timeout."""
    return f"not done within {seconds:g} s"


def explain(error: RuntimeError) -> str:
    """The first line of gloo's words, without the place in its source."""
    line = str(error).splitlines()[0]
    return line.split("] ", 1)[-1] if line.startswith("[") else line
