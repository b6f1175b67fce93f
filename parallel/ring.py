"""Exact attention over keys that are spread over a ring of workers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from longtake.kernels.attention import attention_with_lse
from longtake.kernels.merge import Partial
from longtake.parallel.group import Group


class RingAttention:
    """Keys and values travel around the ring, the next share while this one is attended to.

    A worker holds two shares at any time, in two buffers that are kept from call to call: the one
    that it reads and passes on, and the one that arrives.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._buffers: tuple[Tensor, Tensor] | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
        """Softmax attention of this worker's queries over all workers' keys.

        Args:
            q: (B, Sq, h, D); Sq may be 0 and may differ between workers.
            k, v: (B, lengths[index], h, D), of the dtype of q.
            lengths: how many keys each worker has, the same on all of them; may be 0.

        Returns:
            (B, Sq, h, D) in the dtype of q.

        Raises:
            CommunicationError: if a neighbour fails.
        """
        return self.attend_part(q, k, v, lengths).result(q.dtype)

    def attend_part(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Partial:
        """As `attend`, to be merged with attention over other keys."""
        size, index = self._group.size, self._group.index
        if len(lengths) != size or k.shape[1] != lengths[index] or not sum(lengths):
            raise ValueError(
                f"ring attention: {k.shape[1]} keys at index {index} of {size}, lengths "
                f"{list(lengths)}"
            )
        shapes = [(2, k.shape[0], length, *k.shape[2:]) for length in lengths]
        here, there = self._two_buffers(max(map(prod, shapes)), k)
        own = view(here, shapes[index])
        own[0].copy_(k)
        own[1].copy_(v)
        partial: Partial | None = None
        for hop in range(size):
            owner, following = (index - hop) % size, (index - hop - 1) % size
            arriving = None
            if hop < size - 1:
                arriving = self._group.exchange(
                    view(here, shapes[owner]), view(there, shapes[following])
                )
            if lengths[owner] and q.shape[1]:
                keys, values = view(here, shapes[owner])
                partial = self._add(partial, q, keys, values)
            if arriving is not None:
                arriving.wait()
            here, there = there, here
        return self._add(None, q, k[:, :0], v[:, :0]) if partial is None else partial

    def _add(self, partial: Partial | None, q: Tensor, k: Tensor, v: Tensor) -> Partial:
        out, lse = attention_with_lse(q, k, v)
        if partial is None:
            return Partial.start(out, lse)
        partial.add(out, lse)
        return partial

    def _two_buffers(self, numel: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Flat buffers of at least `numel` elements; they only ever grow."""
        kept = self._buffers
        if kept is None or kept[0].dtype != like.dtype or kept[0].numel() < numel:
            self._buffers = None  # free the old before taking the new
            self._buffers = kept = (like.new_empty(numel), like.new_empty(numel))
        return kept


def view(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The beginning of a flat buffer in a shape."""
    return buffer[: prod(shape)].view(shape)
