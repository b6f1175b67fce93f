"""Messages between GPUs, by NCCL, on a stream of their own beside the one that computes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Protocol

import torch
from torch import Tensor
from torch.cuda import Event, Stream
from torch.distributed import Work

from longtake.parallel.errors import CommunicationError
from longtake.parallel.wire import Membership, Message, payload, peers_of
from longtake.scheduler.timeline import Action, Activity

POLL = 0.002  # seconds between looks at the GPU; the times that are recorded are the GPU's own
REBASE = 60.0  # seconds after which the clocks are compared anew: events count in float32


class NcclBackend(Protocol):
    """What is used of torch's ProcessGroupNCCL, which builds for CPUs don't have."""

    def send(self, tensors: list[Tensor], peer: int, tag: int, /) -> Work: ...
    def recv(self, tensors: list[Tensor], peer: int, tag: int, /) -> Work: ...
    def _start_coalescing(self) -> None: ...
    def _end_coalescing(self) -> Work: ...
    def abort(self) -> None: ...


class NcclTransfer:
    """Messages on the wire's stream, between two events of it."""

    def __init__(
        self, wire: NcclWire, action: str, sends: Sequence[Message], receives: Sequence[Message]
    ) -> None:
        self._wire, self.action = wire, action
        self.sends, self.receives = sends, receives  # their tensors live until the bytes have moved
        self.peers = peers_of(sends, receives)
        self.bytes_out, self.bytes_in = payload(sends), payload(receives)
        self.begin, self.end = Event(enable_timing=True), Event(enable_timing=True)
        self.idle: Event | None = None  # where the computing stream begins to wait
        self.over = threading.Event()

    def wait(self) -> None:
        """Let the computing stream wait; the host goes on. See `Transfer`."""
        self._wire.raise_failure()
        idle = Event(enable_timing=True)
        stream = torch.cuda.current_stream(self._wire.device)
        idle.record(stream)
        stream.wait_event(self.end)
        self.idle = idle


class NcclWire:
    """A `Wire` over a NCCL communicator of its own.

    The host runs ahead of the GPU, so a lost peer is noticed by the wire's watcher: it gives up
    once the computing stream has stood still for the timeout, and the next operation raises.
    """

    def __init__(self, backend: NcclBackend, member: Membership, device: torch.device) -> None:
        self.device = device
        self._backend, self._member = backend, member
        self._stream = Stream(device, priority=-1)
        self._failed: CommunicationError | None = None
        self._latest: NcclTransfer | None = None
        self._watched: SimpleQueue[NcclTransfer | None] = SimpleQueue()
        self._watcher = threading.Thread(target=self._watch, name="nccl transfers", daemon=True)
        self._origin = self._now()
        self._watcher.start()

    def post(
        self, action: str, sends: Sequence[Message], receives: Sequence[Message]
    ) -> NcclTransfer:
        """See `Wire`."""
        self.raise_failure()
        transfer = NcclTransfer(self, action, sends, receives)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(self._stream):
                transfer.begin.record(self._stream)
                self._backend._start_coalescing()
                for message in sends:
                    self._backend.send([message.tensor], message.peer, 0)
                for message in receives:
                    self._backend.recv([message.tensor], message.peer, 0)
                self._backend._end_coalescing().wait()
                transfer.end.record(self._stream)
        except RuntimeError as error:
            self._failed = self._failure(transfer, str(error).splitlines()[0])
            raise self._failed from error
        self._latest = transfer
        self._watched.put(transfer)
        return transfer

    def run(self, action: str, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """See `Wire`; it is the computing stream that waits."""
        self.post(action, sends, receives).wait()

    def settle(self) -> None:
        """See `Wire`."""
        if self._latest is not None:
            self._latest.over.wait()
        self.raise_failure()

    def close(self) -> None:
        """See `Wire`."""
        self._watched.put(None)
        self._backend.abort()

    def raise_failure(self) -> None:
        """Tell the caller what the watcher has seen."""
        if self._failed is not None:
            raise self._failed

    def _watch(self) -> None:
        """Follow transfers in their order, note when they ran, and give up on those that hang."""
        while (transfer := self._watched.get()) is not None:
            if self._follow(transfer):
                self._note(transfer)
            else:
                limit = self._member.timeout
                self._failed = self._failure(transfer, f"not done within {limit:g} s")
                self._backend.abort()  # ends its kernel, or the computing stream waits for ever
            transfer.over.set()

    def _follow(self, transfer: NcclTransfer) -> bool:
        """Wait for a transfer; False once the computing stream has waited for too long."""
        still: float | None = None
        while not transfer.end.query():
            if self._failed is not None:
                return False
            if still is None and transfer.idle is not None and transfer.idle.query():
                still = monotonic()
            if still is not None and monotonic() - still > self._member.timeout:
                return False
            sleep(POLL)
        return True

    def _note(self, transfer: NcclTransfer) -> None:
        start, stop = self._time(transfer.begin), self._time(transfer.end)
        rank, name = self._member.rank, transfer.action
        record = self._member.record
        size, to = transfer.bytes_out, self._member.sent(transfer.sends)
        record(Action(rank, Activity.TRANSFER, name, start, stop, size, to=to))
        if transfer.idle is not None and (idle := self._time(transfer.idle)) < stop:
            record(Action(rank, Activity.WAIT, name, idle, stop))
        if stop - self._origin[1] > REBASE:
            self._origin = (transfer.end, stop)

    def _now(self) -> tuple[Event, float]:
        """An event and the time at which it happened."""
        event = Event(enable_timing=True)
        event.record(self._stream)
        event.synchronize()
        return event, monotonic()

    def _time(self, event: Event) -> float:
        origin, seconds = self._origin
        return seconds + origin.elapsed_time(event) / 1000

    def _failure(self, transfer: NcclTransfer, detail: str) -> CommunicationError:
        sizes = f"{transfer.bytes_out} bytes out, {transfer.bytes_in} in"
        return self._member.failure(transfer.action, transfer.peers, f"{detail} ({sizes})")
