"""Keys and values of committed frames: preallocated, addressed by token, reused as a ring.

The host knows which token of which frame lies in which slot; layers only copy to and from slots
that were settled before the first of them ran, so no layer ever waits for the device. Attention
does not ask for an order of its keys, so an evicted frame's slots are simply filled with the newest
frame's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longtake.scheduler.tally import Occupancy
from longtake.scheduler.task import Span

FREE = -1
ALL = slice(None)


@dataclass(frozen=True)
class Placement:
    """Where one launch writes its tokens and what it reads.

    `writes` are runs (slot, token, count) of the launch's own tokens; `frames` is the frame held by
    each slot that is read, slots 0 .. len(frames) - 1.
    """

    writes: tuple[tuple[int, int, int], ...]
    frames: np.ndarray


class KVCache:
    """Slots for `capacity` tokens in a run of layers, each (batch, capacity, heads, head_dim)."""

    def __init__(
        self,
        layers: range,
        capacity: int,
        batch: int,
        heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (batch, capacity, heads, head_dim)
        self._keys = {i: torch.zeros(shape, device=device, dtype=dtype) for i in layers}
        self._values = {i: torch.zeros(shape, device=device, dtype=dtype) for i in layers}
        self._frame = np.full(capacity, FREE, dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        return 2 * sum(keys.nbytes for keys in self._keys.values())

    def occupancy(self) -> Occupancy:
        """In bytes of the device; from any thread."""
        share = np.count_nonzero(self._frame != FREE) / max(1, len(self._frame))
        return Occupancy(round(share * self.nbytes), self.nbytes)

    def place(self, frames: Span, context: Sequence[Span], tokens_per_frame: int) -> Placement:
        """Settle slots for `frames`: their old ones where they have any, else freed ones.

        Whatever is neither in `frames` nor in `context` is evicted. A worker whose share of a frame
        is empty has nothing to place.

        Raises:
            ValueError: a frame of the context is not cached, or the tokens don't fit.
        """
        if tokens_per_frame == 0:
            return Placement((), np.empty(0, dtype=np.int64))
        wanted = {frame for span in context for frame in span.frames()}
        missing = sorted(wanted - set(self._frame[self._frame != FREE].tolist()))
        if missing:
            raise ValueError(f"frames {missing} should be attended to but are not cached")
        stay = np.isin(self._frame, [*wanted, *frames.frames()])
        self._frame[~stay] = FREE
        slots = np.concatenate(
            [self._slots_of(frame, tokens_per_frame) for frame in frames.frames()]
        )
        used = int(np.flatnonzero(self._frame != FREE)[-1]) + 1
        held = self._frame[:used]
        if (held == FREE).any():
            raise ValueError("the cache has holes: a window shrank without being filled again")
        cuts = np.flatnonzero(np.diff(slots) != 1) + 1
        starts = [0, *cuts.tolist()]
        stops = [*cuts.tolist(), len(slots)]
        writes = tuple((int(slots[a]), a, b - a) for a, b in zip(starts, stops, strict=True))
        return Placement(writes, held.copy())

    def _slots_of(self, frame: int, tokens: int) -> np.ndarray:
        slots = np.flatnonzero(self._frame == frame)
        if len(slots) == 0:
            slots = np.flatnonzero(self._frame == FREE)[:tokens]
            if len(slots) < tokens:
                raise ValueError(f"frame {frame} does not fit: the cache is full")
            self._frame[slots] = frame
        return slots

    def write(
        self, layer: int, placement: Placement, keys: Tensor, values: Tensor, rows: slice = ALL
    ) -> None:
        """Store a launch's keys and values, each (rows, tokens, heads, head_dim)."""
        for slot, token, count in placement.writes:
            self._keys[layer][rows, slot : slot + count] = keys[:, token : token + count]
            self._values[layer][rows, slot : slot + count] = values[:, token : token + count]

    def read(self, layer: int, placement: Placement, rows: slice = ALL) -> tuple[Tensor, Tensor]:
        """What the launch attends to, its own tokens included, as views of the cache."""
        used = len(placement.frames)
        return self._keys[layer][rows, :used], self._values[layer][rows, :used]
