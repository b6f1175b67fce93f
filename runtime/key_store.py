"""Unrotated keys and values of frames, in rows: what launches keep for later ones.

The schedule says what is written, read and evicted; this only knows where it lies. Slots are
settled on the host before the first layer runs, so no layer waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

from longtake.runtime.kv_cache import ALL
from longtake.scheduler.tally import Occupancy
from longtake.scheduler.task import Span


class KeyStore:
    """Room for `frames` frames of `tokens` tokens in a run of layers, (batch, tokens, heads, D)."""

    def __init__(
        self,
        layers: range,
        frames: int,
        tokens: int,
        batch: int,
        heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._shape, self._dtype = (2, batch, frames * tokens, heads, head_dim), dtype
        self._kept = {i: torch.zeros(self._shape, device=device, dtype=dtype) for i in layers}
        self._tokens = tokens
        self._slots: dict[tuple[int, int], int] = {}
        self._free = list(range(frames - 1, -1, -1))

    @property
    def layer_bytes(self) -> int:
        """What is kept of one layer, in bytes."""
        return prod(self._shape) * self._dtype.itemsize

    def occupancy(self) -> Occupancy:
        """In bytes of the device; from any thread."""
        each = self.layer_bytes * len(self._kept)
        share = len(self._slots) / max(1, len(self._slots) + len(self._free))
        return Occupancy(round(share * each), each)

    def give(self, layer: int) -> Tensor:
        """Hand over all that is kept of a layer."""
        return self._kept.pop(layer)

    def take(self, layer: int, kept: Tensor) -> None:
        """Take over what another stage gave of a layer, as bytes; slots are the same on all."""
        self._kept[layer] = kept.view(self._dtype).view(self._shape)

    def evict(self, row: int, frames: Span) -> None:
        """Forget frames, where they are kept."""
        for frame in frames.frames():
            slot = self._slots.pop((row, frame), None)
            if slot is not None:
                self._free.append(slot)

    def reserve(self, row: int, frames: Span) -> list[int]:
        """The slots of frames that are about to be written: their old ones or free ones.

        Raises:
            ValueError: the store is full.
        """
        for frame in frames.frames():
            if (row, frame) not in self._slots:
                if not self._free:
                    raise ValueError(f"frame {frame} of row {row} does not fit: the store is full")
                self._slots[row, frame] = self._free.pop()
        return self.slots(row, frames)

    def slots(self, row: int, frames: Span) -> list[int]:
        """The slots of frames that are kept.

        Raises:
            ValueError: one is not.
        """
        missing = [frame for frame in frames.frames() if (row, frame) not in self._slots]
        if missing:
            raise ValueError(f"frames {missing} of row {row} should be seen but are not kept")
        return [self._slots[row, frame] for frame in frames.frames()]

    def write(
        self, layer: int, slots: Iterable[int], keys: Tensor, values: Tensor, rows: slice = ALL
    ) -> None:
        """Keep the keys and values, (batch, tokens of all slots, heads, D), of frames."""
        kept = self._kept[layer]
        for index, slot in enumerate(slots):
            here, there = self._tokens_of(slot), self._tokens_of(index)
            kept[0, rows, here] = keys[:, there]
            kept[1, rows, here] = values[:, there]

    def read(self, layer: int, slots: Iterable[int], rows: slice = ALL) -> tuple[Tensor, Tensor]:
        """Keys and values of the frames in these slots, joined."""
        parts = [self._kept[layer][:, rows, self._tokens_of(slot)] for slot in slots]
        keys, values = torch.cat(parts, dim=2)
        return keys, values

    def sums(self, layer: int, slots: Iterable[int]) -> Tensor:
        """Sums over the tokens of frames, of the first row of the batch: (frames, 2, heads, D)
        float32, keys before values."""
        kept = self._kept[layer][:, 0]
        return torch.stack([kept[:, self._tokens_of(slot)].float().sum(1) for slot in slots])

    def _tokens_of(self, slot: int) -> slice:
        return slice(slot * self._tokens, (slot + 1) * self._tokens)
