"""Workers that do something together, and the collectives between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from longtake.parallel.wire import Message, Transfer, Wire

Edge = tuple[int, int]  # source and target, as indices in the group


class Nothing:
    """The transfer of no bytes: it is over before it began."""

    def wait(self) -> None:
        """Return at once."""


class Group:
    """Some of the workers, in a fixed order. Alone, every collective is an identity.

    All members call the same collectives in the same order, with sizes computed from what all of
    them know; no sizes travel. An empty tensor is legal and is not sent.

    Attributes:
        name: for traces and errors.
        ranks: the members' ranks in the world.
        index: this worker's place among them.
        device: where the tensors lie.
        edges: wires of single directions, for `Link`.
    """

    def __init__(
        self,
        name: str,
        ranks: Sequence[int],
        index: int,
        wire: Wire | None,
        device: torch.device,
        edges: Mapping[Edge, Wire] | None = None,
    ) -> None:
        if (wire is None) != (len(ranks) == 1):
            raise ValueError(f"a group of {len(ranks)} needs {'a' if wire is None else 'no'} wire")
        self.name, self.ranks, self.index = name, tuple(ranks), index
        self.device, self.edges = device, dict(edges or {})
        self._wire = wire

    @property
    def size(self) -> int:
        """How many members."""
        return len(self.ranks)

    def all_to_all(self, chunks: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Give every member its chunk.

        Args:
            chunks: what each member gets, of any shapes, one dtype and device.
            shapes: of what each member sends to this worker.

        Returns:
            What each member sent; a worker's own chunk is passed on without a copy.

        Raises:
            CommunicationError: as for all operations of the group, if a peer fails.
        """
        if len(chunks) != self.size or len(shapes) != self.size:
            raise ValueError(
                f"{self.name} all_to_all: {len(chunks)} chunks and {len(shapes)} shapes for "
                f"{self.size} members"
            )
        received = [
            chunk if peer == self.index else chunk.new_empty(tuple(shape))
            for peer, (chunk, shape) in enumerate(zip(chunks, shapes, strict=True))
        ]
        self._run("all_to_all", chunks, received)
        return received

    def post_all_to_all(
        self, chunks: Sequence[Tensor], shapes: Sequence[Sequence[int]]
    ) -> tuple[Transfer, list[Tensor]]:
        """As `all_to_all`, but return at once; nothing may touch chunks or what comes until then.

        Returns:
            The transfer to wait for, and what will then hold what each member sent.
        """
        received = [
            chunk if peer == self.index else chunk.new_empty(tuple(shape))
            for peer, (chunk, shape) in enumerate(zip(chunks, shapes, strict=True))
        ]
        sends, receives = self._messages(chunks, received)
        if not sends and not receives:
            return Nothing(), received
        assert self._wire is not None
        return self._wire.post(f"{self.name} all_to_all", sends, receives), received

    def all_gather(self, tensor: Tensor, lengths: Sequence[int], dim: int) -> Tensor:
        """Join the tensors of all members along `dim`, where member i has `lengths[i]` entries."""
        if len(lengths) != self.size or tensor.shape[dim] != lengths[self.index]:
            raise ValueError(
                f"{self.name} all_gather: {tensor.shape[dim]} entries along dim {dim} at index "
                f"{self.index}, lengths {list(lengths)}"
            )
        if self.size == 1:
            return tensor
        shape = list(tensor.shape)
        shape[dim] = sum(lengths)
        joined = tensor.new_empty(shape)
        parts: list[Tensor] = list(torch.split(joined, list(lengths), dim))
        received = [part if part.is_contiguous() else part.new_empty(part.shape) for part in parts]
        parts[self.index].copy_(tensor)
        self._run("all_gather", [tensor.contiguous()] * self.size, received)
        for peer, (part, buffer) in enumerate(zip(parts, received, strict=True)):
            if peer != self.index and buffer is not part:
                part.copy_(buffer)
        return joined

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all members' tensors, added in one order, so that all have the same bits."""
        parts = self.all_gather(tensor.unsqueeze(0), [1] * self.size, 0)
        return reduce(torch.add, parts.unbind(0))

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Fill every member's tensor, in place, with that of index `source`; returns it."""
        if self.size == 1 or tensor.numel() == 0:
            return tensor
        buffer = tensor.contiguous()
        others = [peer for peer in range(self.size) if peer != self.index]
        sends = [Message(peer, buffer) for peer in others] if self.index == source else []
        receives = [] if self.index == source else [Message(source, buffer)]
        assert self._wire is not None
        self._wire.run(f"{self.name} broadcast", sends, receives)
        if self.index != source and buffer is not tensor:
            tensor.copy_(buffer)
        return tensor

    def barrier(self) -> None:
        """Return when all members have come here."""
        token = torch.zeros(1, dtype=torch.uint8, device=self.device)
        tokens = [torch.empty_like(token) for _ in range(self.size)]
        self._run("barrier", [token] * self.size, tokens)
        if self._wire is not None:
            self._wire.settle()

    def exchange(self, outgoing: Tensor, incoming: Tensor) -> Transfer:
        """Send to the next member and receive from the previous one, around the ring.

        Returns at once; nothing may write to `outgoing` or touch `incoming` until the transfer
        has been waited for. Both must be contiguous.
        """
        if self.size == 1:
            raise ValueError(f"{self.name} exchange: there is nobody to exchange with")
        following, previous = (self.index + 1) % self.size, (self.index - 1) % self.size
        sends = [Message(following, outgoing)] if outgoing.numel() else []
        receives = [Message(previous, incoming)] if incoming.numel() else []
        if not sends and not receives:
            return Nothing()
        assert self._wire is not None
        return self._wire.post(f"{self.name} exchange", sends, receives)

    def _run(self, operation: str, chunks: Sequence[Tensor], received: Sequence[Tensor]) -> None:
        """Send chunk i to member i and fill `received` from them; both skip this worker."""
        sends, receives = self._messages(chunks, received)
        if sends or receives:
            assert self._wire is not None
            self._wire.run(f"{self.name} {operation}", sends, receives)

    def _messages(
        self, chunks: Sequence[Tensor], received: Sequence[Tensor]
    ) -> tuple[list[Message], list[Message]]:
        others = [peer for peer in range(self.size) if peer != self.index]
        sends = [Message(i, chunks[i].contiguous()) for i in others if chunks[i].numel()]
        receives = [Message(i, received[i]) for i in others if received[i].numel()]
        return sends, receives
