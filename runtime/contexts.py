"""What stands behind `attend`: joint attention, or attention over the cache.

Workers share the tokens of every frame; `SequenceParallel` turns that into shares of heads and
passes keys around, and is nothing at all for one worker. Tables and caches are of the worker's
segment of each frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from longtake.kernels.rotary import rotary_table, rotate
from longtake.parallel.sequence import SequenceParallel
from longtake.runtime.kv_cache import ALL, KVCache, Placement
from longtake.runtime.wan_transformer import Attention, TextKeys
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.tally import Occupancy
from longtake.scheduler.task import Span


@dataclass(frozen=True)
class JointAttention:
    """Every token sees every token of the launch, which is of so many `frames`.

    `table`: rotations, (S, head_dim // 2, 2).
    """

    sequence: SequenceParallel
    frames: int
    table: Tensor

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rotate and attend; see `wan_transformer.Attention`."""
        q, k, v = self.sequence.to_heads(q, k, v, self.frames)
        q, k = rotate(q, self.table), rotate(k, self.table)
        return self.sequence.to_tokens(self.sequence.attend(q, k, v, self.frames), self.frames)


@dataclass(frozen=True)
class CachedAttention:
    """Write the launch's keys to the cache, then see them and the cached context.

    Keys whose position never changes are stored rotated, others raw and rotated when read: those
    are the first `raw` slots, turned by `read_table`. `own_table` turns the queries, `write_table`
    the keys on their way in. The launch is of `frames` and sees `seen`, itself included. `rows` are
    those of the cache's batch that it is about.
    """

    sequence: SequenceParallel
    frames: int
    seen: int
    cache: KVCache
    placement: Placement
    own_table: Tensor
    write_table: Tensor | None
    read_table: Tensor | None
    raw: int
    rows: slice = field(default_factory=lambda: ALL)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write, read and attend; see `wan_transformer.Attention`."""
        q, k, v = self.sequence.to_heads(q, k, v, self.frames)
        stored = k if self.write_table is None else rotate(k, self.write_table)
        self.cache.write(layer, self.placement, stored, v, self.rows)
        keys, values = self.cache.read(layer, self.placement, self.rows)
        if self.read_table is not None:
            turned = rotate(keys[:, : self.raw], self.read_table)
            keys = (
                turned if self.raw == keys.shape[1] else torch.cat([turned, keys[:, self.raw :]], 1)
            )
        mixed = self.sequence.attend(rotate(q, self.own_table), keys, values, self.seen)
        return self.sequence.to_tokens(mixed, self.frames)


class CausalWindow(Protocol):
    """Makes the attention of causal tasks; `Window` is one."""

    def prompt(self, text: TextKeys) -> None:
        """From now on, blocks are made under this prompt."""
        ...

    def attention(self, frames: Span, context: tuple[Span, ...], rows: slice = ALL) -> Attention:
        """Settle slots and positions for a launch of `frames` seeing `context`."""
        ...

    def occupancy(self) -> Occupancy:
        """Of its cache; from any thread."""
        ...


class Window:
    """Makes the attention of causal tasks from a retention policy and a cache."""

    def __init__(
        self,
        cache: KVCache,
        retention: Retention,
        grid: tuple[int, int],
        head_dim: int,
        device: torch.device,
        sequence: SequenceParallel,
    ) -> None:
        self._cache, self._retention, self._sequence = cache, retention, sequence
        self._grid, self._head_dim, self._device = grid, head_dim, device
        self._latest: tuple[tuple[Span, ...], CachedAttention] | None = None

    def prompt(self, text: TextKeys) -> None:
        """Nothing: what stays cached does not depend on it."""

    def attention(
        self, frames: Span, context: tuple[Span, ...], rows: slice = ALL
    ) -> CachedAttention:
        """Settle slots and positions for a launch of `frames` seeing `context`.

        All steps and branches of a block ask for the same, so the latest answer is kept.
        """
        asked = (frames, *context)
        if self._latest is None or self._latest[0] != asked:
            self._latest = (asked, self._settle(frames, context))
        settled = self._latest[1]
        return settled if rows == ALL else replace(settled, rows=rows)

    def occupancy(self) -> Occupancy:
        """See `CausalWindow`."""
        return self._cache.occupancy()

    def _settle(self, frames: Span, context: tuple[Span, ...]) -> CachedAttention:
        tokens = len(self._sequence.segment)
        placement = self._cache.place(frames, context, tokens)
        place = self._retention.place(context, frames)
        first = context[0].start if context else frames.start
        held = placement.frames[:: max(1, tokens)].tolist()
        raw = [frame for frame in held if self._retention.stored_unrotated(frame, first)]
        if raw != held[: len(raw)]:
            raise ValueError(f"frames kept raw {raw} must come first among {held}")
        own_table = self._table([place[frame] for frame in frames.frames()])
        write_table = own_table.clone()
        for index, frame in enumerate(frames.frames()):
            if self._retention.stored_unrotated(frame, first):
                write_table[index * tokens : (index + 1) * tokens] = write_table.new_tensor([1, 0])
        return CachedAttention(
            sequence=self._sequence,
            frames=len(frames),
            seen=len(place),
            cache=self._cache,
            placement=placement,
            own_table=own_table,
            write_table=None if self._retention.positions is Positions.RELATIVE else write_table,
            read_table=self._table([place[frame] for frame in raw]) if raw else None,
            raw=len(raw) * tokens,
        )

    def _table(self, positions: list[int]) -> torch.Tensor:
        return segment_table(positions, self._grid, self._head_dim, self._device, self._sequence)


def segment_table(
    positions: Sequence[int],
    grid: tuple[int, int],
    head_dim: int,
    device: torch.device,
    sequence: SequenceParallel,
) -> Tensor:
    """The rotations of a worker's segment of frames at `positions`, (tokens, head_dim // 2, 2)."""
    table = rotary_table(positions, *grid, head_dim, device)
    frames = table.unflatten(0, (len(positions), grid[0] * grid[1]))
    return frames[:, sequence.segment.start : sequence.segment.stop].flatten(0, 1)
