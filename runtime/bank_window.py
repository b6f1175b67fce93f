"""The memory bank of MemFlow (arXiv 2512.14699), after its published code.

A frame's score in a layer is the mean dot product of the prompt's cross-attention keys with the
frame's self-attention keys, over text tokens, heads and the frame's tokens: one vector a frame and
head is all it takes. With `active`, each head sees only those frames of sink and bank whose mean
key is closest to its mean query.

Otherwise than there, scores are of unrotated keys, so that they don't depend on when a frame was
made; and a frame enters the bank when it leaves the window, so that nothing is seen twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longtake.parallel.mesh import Mesh
from longtake.runtime.slot_window import SlotAttention, SlotWindow
from longtake.runtime.wan_transformer import TextKeys, WanTransformer
from longtake.scheduler.bank_retention import BankRetention
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.task import Span


class BankWindow(SlotWindow):
    """Slots are [sink | bank | local window]; a note is the sum of a frame's unrotated keys."""

    def __init__(
        self,
        transformer: WanTransformer,
        spec: ModelSpec,
        retention: BankRetention,
        total_frames: int | None,
        request: Request,
        mesh: Mesh,
    ) -> None:
        super().__init__(transformer, spec, retention.capacity(total_frames), request, mesh)
        self._retention, self._block = retention, spec.block_frames
        self._ends: dict[tuple[int, int | None], int] = {}  # of the window, by layer and rows
        self._text: TextKeys | None = None

    def prompt(self, text: TextKeys) -> None:
        """See `contexts.CausalWindow`."""
        self._text = text

    def taken(self, frames: Span) -> int:
        """See `SlotWindow`."""
        return self._retention.taken(frames, self._block)

    def note(self, task: SlotAttention, queries: Tensor, keys: Tensor) -> Tensor:
        """See `SlotWindow`."""
        return self.sums(keys, len(task.frames))

    def arrange(self, layer: int, task: SlotAttention, note: Tensor) -> None:
        """Let the local window slide, and what leaves it go to the bank."""
        policy, rows = self._retention, task.rows
        done, stop = self._ends.get((layer, rows.start), 0), task.frames.stop
        self._ends[layer, rows.start] = stop
        left = Span(policy.local(done), policy.local(stop))
        if not len(left):
            return
        before, after = (policy.banked(end, self._block) for end in (done, stop))
        local = policy.sink + before
        for frame in policy.prototypes(left, self._block):
            slot = local + frame - left.start
            newcomer = Span(slot, slot + 1)
            if before == policy.bank:
                self._forget_one(layer, rows)
            self.cache.move(layer, newcomer, policy.sink + after - 1, rows)
        held = local + done - left.start
        self.cache.move(layer, Span(local + len(left), held), policy.sink + after, rows)

    def _forget_one(self, layer: int, rows: slice) -> None:
        """Leave a full bank without the frame that the prompt asks for least, in order."""
        assert self._text is not None
        bank = Span(self._retention.sink, self._retention.sink + self._retention.bank)
        asked = self._text.layer(layer)[0][rows].float().mean(1)
        group = self._mesh.ulysses
        asked = asked.chunk(group.size, 1)[group.index]
        frames = self._mesh.ring.total(self.cache.notes(layer, bank, rows))
        scores = group.total(torch.einsum("bhd,bfhd->bf", asked, frames))
        self.cache.keep(layer, bank, best(scores, len(bank) - 1), rows)

    def read(self, layer: int, task: SlotAttention, queries: Tensor) -> tuple[Tensor, Tensor, int]:
        """All slots; once frames have left the window, only the active ones of sink and bank."""
        keys, values, seen = super().read(layer, task, queries)
        active, policy = self._retention.active, self._retention
        memory = policy.sink + policy.banked(task.frames.stop, self._block)
        if active is None or memory <= active or policy.local(task.frames.stop) == policy.sink:
            return keys, values, seen
        tokens = len(self.sequence.segment)
        wanted = self._mesh.ring.total(self.sums(queries, len(task.frames)).sum(1))
        parts = self.sums(keys[:, : memory * tokens], memory)
        scores = self._mesh.ring.total(torch.einsum("bhd,bfhd->bhf", wanted, parts))
        index = best(scores, active).transpose(1, 2)[:, :, None, :, None]  # (rows, active, 1, h, 1)
        index = index.expand(-1, -1, tokens, -1, keys.shape[-1])

        def activate(x: Tensor) -> Tensor:
            frames = x[:, : memory * tokens].unflatten(1, (memory, tokens))
            return torch.cat([frames.gather(1, index).flatten(1, 2), x[:, memory * tokens :]], 1)

        return activate(keys), activate(values), seen - memory + active


def best(scores: Tensor, count: int) -> Tensor:
    """Where the highest scores along the last dim are, in order of place."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values
