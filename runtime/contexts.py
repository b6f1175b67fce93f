"""What stands behind `attend`: joint attention, or attention over the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.kernels.attention import attention
from longtake.kernels.rotary import rotary_table, rotate
from longtake.runtime.kv_cache import KVCache, Placement
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.task import Span


@dataclass(frozen=True)
class JointAttention:
    """Every token sees every token of the launch. `table`: rotations, (S, head_dim // 2, 2)."""

    table: Tensor

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rotate and attend; see `wan_transformer.Attention`."""
        return attention(rotate(q, self.table), rotate(k, self.table), v)


@dataclass(frozen=True)
class CachedAttention:
    """Write the launch's keys to the cache, then see them and the cached context.

    Keys whose position never changes are stored rotated, others raw and rotated when read: those
    are the first `raw` slots, turned by `read_table`. `own_table` turns the queries, `write_table`
    the keys on their way in.
    """

    cache: KVCache
    placement: Placement
    own_table: Tensor
    write_table: Tensor | None
    read_table: Tensor | None
    raw: int

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write, read and attend; see `wan_transformer.Attention`."""
        stored = k if self.write_table is None else rotate(k, self.write_table)
        self.cache.write(layer, self.placement, stored, v)
        keys, values = self.cache.read(layer, self.placement)
        if self.read_table is not None:
            turned = rotate(keys[:, : self.raw], self.read_table)
            keys = (
                turned if self.raw == keys.shape[1] else torch.cat([turned, keys[:, self.raw :]], 1)
            )
        return attention(rotate(q, self.own_table), keys, values)


class Window:
    """Makes the attention of causal tasks from a retention policy and a cache."""

    def __init__(
        self,
        cache: KVCache,
        retention: Retention,
        grid: tuple[int, int],
        head_dim: int,
        device: torch.device,
    ) -> None:
        self._cache, self._retention = cache, retention
        self._grid, self._head_dim, self._device = grid, head_dim, device
        self._latest: tuple[tuple[Span, ...], CachedAttention] | None = None

    def attention(self, frames: Span, context: tuple[Span, ...]) -> CachedAttention:
        """Settle slots and positions for a launch of `frames` seeing `context`.

        All steps of a block ask for the same, so the latest answer is kept.
        """
        asked = (frames, *context)
        if self._latest is None or self._latest[0] != asked:
            self._latest = (asked, self._settle(frames, context))
        return self._latest[1]

    def _settle(self, frames: Span, context: tuple[Span, ...]) -> CachedAttention:
        tokens = self._grid[0] * self._grid[1]
        placement = self._cache.place(frames, context, tokens)
        place = self._retention.place(context, frames)
        first = context[0].start if context else frames.start
        held = placement.frames[::tokens].tolist()
        raw = [frame for frame in held if self._retention.stored_unrotated(frame, first)]
        if raw != held[: len(raw)]:
            raise ValueError(f"frames kept raw {raw} must come first among {held}")
        own_table = self._table([place[frame] for frame in frames.frames()])
        write_table = own_table.clone()
        for index, frame in enumerate(frames.frames()):
            if self._retention.stored_unrotated(frame, first):
                write_table[index * tokens : (index + 1) * tokens] = write_table.new_tensor([1, 0])
        return CachedAttention(
            cache=self._cache,
            placement=placement,
            own_table=own_table,
            write_table=None if self._retention.positions is Positions.RELATIVE else write_table,
            read_table=self._table([place[frame] for frame in raw]) if raw else None,
            raw=len(raw) * tokens,
        )

    def _table(self, positions: list[int]) -> torch.Tensor:
        return rotary_table(positions, *self._grid, self._head_dim, self._device)
