"""Keys and values in slots whose order their owner decides; what stays may differ by layer.

A slot holds a frame's worth of tokens, of one frame or chosen from several. Keys are stored with
their place in the frame (rows and columns) turned in and without their time, which is turned in
when they are read. Beside every slot lies a note, one vector a head, for whoever scores slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longtake.runtime.kv_cache import ALL
from longtake.scheduler.task import Span


class SlotCache:
    """`slots` of `tokens` tokens each in a run of layers, (batch, tokens, heads, head_dim).

    Attributes:
        slots: how many.
    """

    def __init__(
        self,
        layers: range,
        slots: int,
        tokens: int,
        batch: int,
        heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (2, batch, slots * tokens, heads, head_dim)
        self._kept = {i: torch.zeros(shape, device=device, dtype=dtype) for i in layers}
        notes = (batch, slots, heads, head_dim)
        self._notes = {i: torch.zeros(notes, device=device) for i in layers}
        self.slots, self._tokens = slots, tokens

    @property
    def slot_bytes(self) -> int:
        """What a slot takes in all layers, without its notes."""
        return sum(kept.nbytes for kept in self._kept.values()) // self.slots

    def write(
        self, layer: int, first: int, keys: Tensor, values: Tensor, rows: slice = ALL
    ) -> None:
        """Fill slots from `first` on with keys and values, each (rows, n * tokens, heads, D)."""
        at = slice(first * self._tokens, first * self._tokens + keys.shape[1])
        kept = self._kept[layer]
        kept[0, rows, at], kept[1, rows, at] = keys, values

    def read(self, layer: int, slots: Span, rows: slice = ALL) -> tuple[Tensor, Tensor]:
        """Keys and values of slots, as views."""
        at = slice(slots.start * self._tokens, slots.stop * self._tokens)
        kept = self._kept[layer]
        return kept[0, rows, at], kept[1, rows, at]

    def note(self, layer: int, first: int, notes: Tensor, rows: slice = ALL) -> None:
        """Lay notes, (rows, n, heads, D) float32, beside the slots from `first` on."""
        self._notes[layer][rows, first : first + notes.shape[1]] = notes

    def notes(self, layer: int, slots: Span, rows: slice = ALL) -> Tensor:
        """The notes beside slots, (rows, n, heads, D) float32, as a view."""
        return self._notes[layer][rows, slots.start : slots.stop]

    def move(self, layer: int, slots: Span, first: int, rows: slice = ALL) -> None:
        """Copy slots, with their notes, to those from `first` on; the two may overlap."""
        if slots.start == first:
            return
        keys, values = self.read(layer, slots, rows)
        self.write(layer, first, keys.clone(), values.clone(), rows)
        self.note(layer, first, self.notes(layer, slots, rows).clone(), rows)

    def keep(self, layer: int, slots: Span, index: Tensor, rows: slice = ALL) -> None:
        """Close `slots` up to those of them that `index`, (rows, kept), counts from the first."""
        keys, values = (
            x.unflatten(1, (len(slots), self._tokens)) for x in self.read(layer, slots, rows)
        )
        notes = self.notes(layer, slots, rows)
        frames = index[:, :, None, None, None].expand(-1, -1, *keys.shape[2:])
        kept = [x.gather(1, frames).flatten(1, 2) for x in (keys, values)]
        self.write(layer, slots.start, kept[0], kept[1], rows)
        heads = index[:, :, None, None].expand(-1, -1, *notes.shape[2:])
        self.note(layer, slots.start, notes.gather(1, heads), rows)
