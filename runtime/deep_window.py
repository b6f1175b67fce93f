"""Participative compression of Deep Forcing (arXiv 2512.05081): which tokens stay, layer by layer.

A token's score is the sum of its dot products with all recent queries, over all heads: those of
the block in the making at its first, noisiest step, and those of the clean frames before it. That
sum is one dot product with the sum of the queries, so a layer keeps one vector a frame and head.

Workers of a sequence add and exchange scores, so all take the same decision; where two scores tie
to rounding, another plan may keep the other token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longtake.kernels.rotary import rotate
from longtake.parallel.mesh import Mesh
from longtake.runtime.slot_window import SlotAttention, SlotWindow
from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler.deep_retention import DeepRetention
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.task import Span


class DeepWindow(SlotWindow):
    """Slots are [sink | chosen tokens | frames since]; a note is the sum of a frame's queries."""

    def __init__(
        self,
        transformer: WanTransformer,
        spec: ModelSpec,
        retention: DeepRetention,
        total_frames: int | None,
        request: Request,
        mesh: Mesh,
    ) -> None:
        super().__init__(transformer, spec, retention.capacity(total_frames), request, mesh)
        self._retention = retention

    def taken(self, frames: Span) -> int:
        """See `SlotWindow`."""
        return self._retention.seen(frames) - len(frames)

    def note(self, task: SlotAttention, queries: Tensor, keys: Tensor) -> Tensor:
        """The queries as they are at position 0, which they are turned from when they are used."""
        sums = self.sums(queries, len(task.frames))
        return rotate(sums, self._clock(tuple(-task.first - i for i in range(len(task.frames)))))

    def arrange(self, layer: int, task: SlotAttention, note: Tensor) -> None:
        """Where the block doesn't fit, choose among the tokens between sink and recent frames."""
        retention = self._retention
        if not retention.selects(task.frames):
            return
        held = retention.held(task.frames)
        recent = Span(held - (retention.recent - len(task.frames)), held)
        if retention.chosen:
            queries = torch.cat([self.cache.notes(layer, recent, task.rows), note], dim=1)
            at = tuple(range(recent.start, held + len(task.frames)))
            self._choose(layer, task, rotate(queries, self._clock(at)).sum(1), recent.start)
        self.cache.move(layer, recent, retention.sink + retention.chosen, task.rows)

    def _choose(self, layer: int, task: SlotAttention, queries: Tensor, stop: int) -> None:
        """Keep the best tokens of the slots from the sink to `stop`, in their order.

        `queries`: the sum of those that decide, (rows, heads, D) float32, of this worker's tokens.
        """
        sink, chosen, sequence = self._retention.sink, self._retention.chosen, self.sequence
        slots = Span(sink, stop)
        keys, values = self.cache.read(layer, slots, task.rows)
        wanted = self._mesh.ring.total(queries)
        turned = self.turned(keys, slots.frames()).float()
        scores = self._mesh.ulysses.total(torch.einsum("bnhd,bhd->bn", turned, wanted))
        scores = sequence.join_segments(scores, len(slots))
        keep = chosen * (scores.shape[1] // len(slots))
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :keep].sort().values
        # Of every chosen slot a worker of the ring has the same columns as of any frame.
        own = slice(sequence.segment.start, sequence.segment.stop)
        index = best.unflatten(1, (chosen, -1))[:, :, own].flatten(1)[:, :, None, None]
        index = index.expand(-1, -1, *keys.shape[2:])
        kept = [sequence.join_segments(x, len(slots)).gather(1, index) for x in (keys, values)]
        self.cache.write(layer, sink, kept[0], kept[1], task.rows)
