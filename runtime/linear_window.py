"""Causal linear attention over a state of constant size; see `kernels.linear_attention`.

Every evaluation of a block sees the state of the blocks before it and its own keys. What the last
evaluation of a block gives, which is the clean one, is added to the state when the next block
begins: so a block counts once, however often it is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from longtake.kernels.linear_attention import LinearState, linear_attention
from longtake.parallel.mesh import Mesh
from longtake.parallel.sequence import SequenceParallel
from longtake.runtime.contexts import segment_table
from longtake.runtime.kv_cache import ALL
from longtake.runtime.wan_transformer import TextKeys, WanTransformer
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.tally import Occupancy
from longtake.scheduler.task import Span


@dataclass(frozen=True)
class Memory:
    """Of one layer and some rows: the blocks before `frames`, and their own latest evaluation."""

    frames: Span
    past: LinearState | None
    own: LinearState


@dataclass(frozen=True)
class LinearAttention:
    """What stands behind `attend` for a launch of `frames`, placed by `table`."""

    window: LinearWindow
    frames: Span
    table: Tensor
    rows: slice

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Sum up, and see the sum; see `wan_transformer.Attention`."""
        sequence, count = self.window.sequence, len(self.frames)
        q, k, v = sequence.to_heads(q, k, v, count)
        own = self.window.summed(LinearState.of(k, v, self.table))
        seen = self.window.update(layer, self.rows, self.frames, own)
        return sequence.to_tokens(linear_attention(q, self.table, seen), count)


class LinearWindow:
    """Makes the attention of causal tasks; see `contexts.CausalWindow`.

    Attributes:
        sequence: of this worker.
    """

    def __init__(
        self, transformer: WanTransformer, spec: ModelSpec, request: Request, mesh: Mesh
    ) -> None:
        self._grid = spec.grid(request.height, request.width)
        self._head_dim, self._device, self._ring = spec.head_dim, transformer.device, mesh.ring
        self.sequence = SequenceParallel(mesh, self._grid[0] * self._grid[1])
        self._memories: dict[tuple[int, int | None], Memory] = {}
        self._latest: LinearAttention | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held between tasks."""
        held = [(memory.past, memory.own) for memory in list(self._memories.values())]
        return sum(state.nbytes for both in held for state in both if state is not None)

    def occupancy(self) -> Occupancy:
        """See `contexts.CausalWindow`; what is there is in use."""
        return Occupancy(self.nbytes, self.nbytes)

    def prompt(self, text: TextKeys) -> None:
        """Nothing depends on it."""

    def attention(
        self, frames: Span, context: tuple[Span, ...], rows: slice = ALL
    ) -> LinearAttention:
        """Place a launch; `context` is always all of the past."""
        latest = self._latest
        if latest is None or (latest.frames, latest.rows) != (frames, rows):
            place = self._grid, self._head_dim, self._device, self.sequence
            table = segment_table(frames.frames(), *place)
            latest = self._latest = LinearAttention(self, frames, table, rows)
        return latest

    def summed(self, state: LinearState) -> LinearState:
        """Of the tokens of all workers of the ring."""
        return LinearState(self._ring.total(state.mixed), self._ring.total(state.mass))

    def update(self, layer: int, rows: slice, frames: Span, own: LinearState) -> LinearState:
        """Take what an evaluation of `frames` gives, and return all that it sees.

        Raises:
            ValueError: the frames are not those of the latest block or the ones after it.
        """
        at = layer, rows.start
        memory = self._memories.get(at)
        past = None if memory is None else memory.past
        if memory is not None and memory.frames != frames:
            if memory.frames.stop != frames.start:
                raise ValueError(f"frames {frames} don't follow {memory.frames}, the latest ones")
            past = memory.own if past is None else past + memory.own
        self._memories[at] = Memory(frames, past, own)
        return own if past is None else past + own
