"""Causal attention over a cache in which every layer decides for itself what stays.

Before a block's first evaluation writes anything, a layer may rearrange its slots; how many slots
are taken after that is known beforehand, so all tables are. Slots are seen at consecutive temporal
positions, whatever frames their tokens come from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from longtake.kernels.rotary import rotary_table, rotate
from longtake.parallel.mesh import Mesh
from longtake.parallel.sequence import SequenceParallel
from longtake.runtime.contexts import segment_table
from longtake.runtime.kv_cache import ALL
from longtake.runtime.slot_cache import SlotCache
from longtake.runtime.wan_transformer import TextKeys, WanTransformer
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.tally import Occupancy
from longtake.scheduler.task import Span


@dataclass(frozen=True)
class SlotAttention:
    """What stands behind `attend` for a launch of `frames`, whose slots begin at `first`.

    `table` turns the queries, `plane` the keys, without their time. `arranged` are the layers and
    rows that this block has been through before.
    """

    window: SlotWindow
    frames: Span
    first: int
    table: Tensor
    plane: Tensor
    rows: slice = field(default_factory=lambda: ALL)
    arranged: set[tuple[int, int | None]] = field(default_factory=set)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Arrange, write, read and attend; see `wan_transformer.Attention`."""
        count, sequence, cache = len(self.frames), self.window.sequence, self.window.cache
        q, k, v = sequence.to_heads(q, k, v, count)
        q = rotate(q, self.table)
        note = self.window.note(self, q, k)
        if (layer, self.rows.start) not in self.arranged:
            self.window.arrange(layer, self, note)
            self.arranged.add((layer, self.rows.start))
        cache.write(layer, self.first, rotate(k, self.plane), v, self.rows)
        cache.note(layer, self.first, note, self.rows)
        keys, values, seen = self.window.read(layer, self, q)
        return sequence.to_tokens(sequence.attend(q, keys, values, seen), count)


class SlotWindow(ABC):
    """Makes the attention of causal tasks; see `contexts.Window`.

    Attributes:
        cache, sequence: of this worker.
    """

    def __init__(
        self,
        transformer: WanTransformer,
        spec: ModelSpec,
        slots: int,
        request: Request,
        mesh: Mesh,
    ) -> None:
        grid = spec.grid(request.height, request.width)
        self._mesh, self._spec, self._device = mesh, spec, transformer.device
        self.sequence = SequenceParallel(mesh, grid[0] * grid[1])
        layers = mesh.degrees.layers(mesh.place.stage, spec)
        self.cache = SlotCache(
            layers=range(layers.start, layers.stop),
            slots=slots,
            tokens=len(self.sequence.segment),
            batch=(2 if request.guidance > 1 else 1) // mesh.degrees.cfg,
            heads=spec.heads // mesh.degrees.ulysses,
            head_dim=spec.head_dim,
            device=transformer.device,
            dtype=transformer.dtype,
        )
        self._latest: SlotAttention | None = None

        @lru_cache(16)
        def table(positions: tuple[int, ...]) -> Tensor:
            return segment_table(positions, grid, spec.head_dim, self._device, self.sequence)

        @lru_cache(64)
        def clock(positions: tuple[int, ...]) -> Tensor:
            return rotary_table(positions, 1, 1, spec.head_dim, self._device)

        self._table, self._clock = table, clock

    def attention(
        self, frames: Span, context: tuple[Span, ...], rows: slice = ALL
    ) -> SlotAttention:
        """All steps and branches of a block ask for the same, so the latest answer is kept.

        `context` tells nothing that the policy doesn't know by `frames`.
        """
        if self._latest is None or self._latest.frames != frames:
            first = self.taken(frames)
            at = tuple(range(first, first + len(frames)))
            plane = self._table((0,) * len(frames))
            self._latest = SlotAttention(self, frames, first, self._table(at), plane)
        return self._latest if rows == ALL else replace(self._latest, rows=rows)

    def prompt(self, text: TextKeys) -> None:  # noqa: B027
        """See `contexts.CausalWindow`."""

    def occupancy(self) -> Occupancy:
        """See `contexts.CausalWindow`."""
        latest, each = self._latest, self.cache.slot_bytes
        taken = 0 if latest is None else latest.first + len(latest.frames)
        return Occupancy(taken * each, self.cache.slots * each)

    @abstractmethod
    def taken(self, frames: Span) -> int:
        """How many slots are taken before `frames`, of a block or of a past written again."""

    @abstractmethod
    def note(self, task: SlotAttention, queries: Tensor, keys: Tensor) -> Tensor:
        """What to note of a launch's frames, (rows, frames, heads, D) float32, of its turned
        queries and unturned keys, (rows, tokens, heads, D)."""

    @abstractmethod
    def arrange(self, layer: int, task: SlotAttention, note: Tensor) -> None:
        """Make room for frames, whose first evaluation in this layer it is; `note` is of it."""

    def read(self, layer: int, task: SlotAttention, queries: Tensor) -> tuple[Tensor, Tensor, int]:
        """Turned keys, and values, that a launch attends to; and of how many frames they are."""
        seen = Span(0, task.first + len(task.frames))
        keys, values = self.cache.read(layer, seen, task.rows)
        return self.turned(keys, range(len(seen))), values, len(seen)

    def turned(self, keys: Tensor, positions: Sequence[int]) -> Tensor:
        """Keys out of the cache, (rows, n * segment, heads, D), seen at temporal positions."""
        clock = self._clock(tuple(positions))
        return rotate(keys, clock.repeat_interleave(len(self.sequence.segment), 0))

    def sums(self, x: Tensor, frames: int) -> Tensor:
        """Over the segment's tokens of each frame, (rows, frames, heads, D) float32."""
        return x.unflatten(1, (frames, len(self.sequence.segment))).sum(2, dtype=torch.float32)
