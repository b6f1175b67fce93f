"""What a group sends its messages over, whatever moves the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from longtake.parallel.errors import CommunicationError
from longtake.scheduler.timeline import Record


@dataclass(frozen=True)
class Message:
    """A contiguous tensor that goes to, or comes from, a peer: an index in the group."""

    peer: int
    tensor: Tensor


@dataclass(frozen=True)
class Membership:
    """Who a worker is among those that a wire connects.

    Attributes:
        ranks: of all members, in order of index.
        index: this worker's.
        timeout: seconds that the worker stands still at most.
    """

    ranks: tuple[int, ...]
    index: int
    timeout: float
    record: Record

    @property
    def rank(self) -> int:
        """This worker's rank in the world."""
        return self.ranks[self.index]

    def sent(self, sends: Sequence[Message]) -> tuple[tuple[int, int], ...]:
        """Ranks and the bytes that go there."""
        return tuple((self.ranks[message.peer], payload([message])) for message in sends)

    def failure(self, action: str, peers: Sequence[int], detail: str) -> CommunicationError:
        """An error that names all there is to know; `peers` are indices in the group."""
        ranks = sorted({self.ranks[peer] for peer in peers})
        return CommunicationError(action, self.rank, ranks, detail)


class Transfer(Protocol):
    """Messages on their way."""

    def wait(self) -> None:
        """Stand still until all have been sent and received; tensors may be used again after.

        Raises:
            CommunicationError: if a peer is gone or too late.
        """
        ...


class Wire(Protocol):
    """Connects the members of a group. Messages between two of them stay in order."""

    def post(self, action: str, sends: Sequence[Message], receives: Sequence[Message]) -> Transfer:
        """Begin to send and receive; nothing may touch the tensors until `wait` has returned."""
        ...

    def run(self, action: str, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """Send and receive, and wait for it."""
        ...

    def settle(self) -> None:
        """Return when this process is done with all that it was told to wait for: on GPUs it is
        the computing stream that waits, while the process goes on."""
        ...

    def close(self) -> None:
        """Give up what is under way, and disconnect."""
        ...


def payload(messages: Sequence[Message]) -> int:
    """Bytes in all."""
    return sum(message.tensor.numel() * message.tensor.element_size() for message in messages)


def peers_of(sends: Sequence[Message], receives: Sequence[Message]) -> list[int]:
    """The peers that take part, each once."""
    return sorted({message.peer for message in (*sends, *receives)})
