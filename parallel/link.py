"""Point-to-point messages between neighbouring stages."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.parallel.group import Edge, Group
from longtake.parallel.wire import Message, Transfer, Wire


class Handle:
    """A message that is expected."""

    def __init__(self, transfer: Transfer | None, tensor: Tensor) -> None:
        self._transfer, self._tensor = transfer, tensor

    def wait(self) -> Tensor:
        """The message, once it has come; the tensor is the caller's to keep.

        Raises:
            CommunicationError: if the sender is gone or too late.
        """
        if self._transfer is not None:
            self._transfer.wait()
        return self._tensor


class Link:
    """Sends to the next stage and receives from the previous one; the last one's next is the first.

    Messages between two stages arrive in the order in which they were sent. A sender never waits
    for its latest message but one: two are on their way at most.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._sending: deque[tuple[Transfer, Tensor]] = deque()
        self._spare: list[Tensor] = []

    def send(self, tensor: Tensor, to: int) -> None:
        """Send to stage `to`; the tensor is copied, so the caller may go on using it.

        Raises:
            CommunicationError: if the receiver of an earlier message is gone or too late.
        """
        wire = self._wire((self._group.index, to))
        if tensor.numel() == 0:
            return
        if len(self._sending) > 1:
            self._finish()
        buffer = self._buffer(tensor.numel() * tensor.element_size())
        packed = buffer[: tensor.numel() * tensor.element_size()].view(tensor.dtype)
        packed.view(tensor.shape).copy_(tensor)
        name = f"{self._group.name} {self._group.index} to {to} send"
        self._sending.append((wire.post(name, [Message(1, packed)], []), buffer))

    def post(self, shape: Sequence[int], dtype: torch.dtype, source: int) -> Handle:
        """Expect a message of known shape from stage `source`. Post early, so that it can land."""
        wire = self._wire((source, self._group.index))
        tensor = torch.empty(tuple(shape), dtype=dtype, device=self._group.device)
        if tensor.numel() == 0:
            return Handle(None, tensor)
        name = f"{self._group.name} {source} to {self._group.index} receive"
        return Handle(wire.post(name, [], [Message(0, tensor)]), tensor)

    def flush(self) -> None:
        """Wait until all that was sent has left; errors as in `send`."""
        while self._sending:
            self._finish()

    def _finish(self) -> None:
        transfer, buffer = self._sending.popleft()
        transfer.wait()
        self._spare.append(buffer)

    def _buffer(self, size: int) -> Tensor:
        """A buffer of at least so many bytes; there are never more than two."""
        if self._spare and len(self._spare[-1]) >= size:
            return self._spare.pop()
        self._spare.clear()
        return torch.empty(size, dtype=torch.uint8, device=self._group.device)

    def _wire(self, edge: Edge) -> Wire:
        if edge not in self._group.edges:
            legal = ", ".join(f"{source} to {target}" for source, target in self._group.edges)
            raise ValueError(
                f"{self._group.name} {self._group.index} has no link {edge[0]} to {edge[1]}; "
                f"it has {legal or 'none'}"
            )
        return self._group.edges[edge]
