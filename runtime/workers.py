"""The worker of a transformer's lane: it encodes prompts, denoises blocks, commits them.

A lane is a stage, a run of layers; its workers share every task. A worker with all layers does
whole tasks; otherwise the tokens go from stage to stage, and the flow from the last one back to the
first, which alone keeps the latents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from longtake.parallel.guidance import guided
from longtake.parallel.link import Handle, Link
from longtake.parallel.mesh import Mesh
from longtake.parallel.sequence import SequenceParallel
from longtake.runtime.contexts import CausalWindow, JointAttention, Window, segment_table
from longtake.runtime.key_store import KeyStore
from longtake.runtime.kv_cache import ALL, KVCache
from longtake.runtime.launches import Launches
from longtake.runtime.noise import Noise
from longtake.runtime.samplers import BlockSampler, Sampler
from longtake.runtime.wan_transformer import (
    Attention,
    BranchKeys,
    Text,
    TextKeys,
    WanTransformer,
)
from longtake.scheduler.degrees import shares
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.retention import Retention
from longtake.scheduler.tally import Occupancy
from longtake.scheduler.task import Edge, Kind, Payload, Span, Task

Key = tuple[Payload, int | None]  # what an edge carries, of which branch


class BlockStore(Protocol):
    """Where finished blocks are kept; the journal is one."""

    def read(self, block: int) -> Tensor | None:
        """A finished block's latents, or None if it must be made."""
        ...

    def write(self, block: int, latents: Tensor) -> None:
        """Keep a finished block's latents."""
        ...

    def read_state(self) -> tuple[int, dict[str, Tensor]] | None:
        """What `write_state` kept last, or None."""
        ...

    def write_state(self, tick: int, tensors: dict[str, Tensor]) -> None:
        """Keep what it takes to go on after the launch at `tick`."""
        ...


@dataclass
class Block:
    """A block in the making: its latents (1, C, f, h, w) float32, and what moves them; a restored
    one needs no solver. It is forgotten once it is `over` and another begins."""

    latents: Tensor
    solver: BlockSampler | None = None
    over: bool = False


class DenoiseWorker:
    """Does one worker's share of a lane's tasks.

    A block that the store already holds is not denoised again, only restored and committed; so a
    resumed run rebuilds its cache from the very latents that the first run kept, to the same bits.
    """

    def __init__(
        self,
        transformer: WanTransformer,
        encode_text: Callable[[int], Tensor],
        request: Request,
        spec: ModelSpec,
        sampler: Sampler,
        noise: Noise,
        store: BlockStore,
        mesh: Mesh,
        window: CausalWindow | None,
        history: int,
        context_timestep: float = 0.0,
    ) -> None:
        """`encode_text` gives a cue's embeddings for this worker's branches of guidance, the
        negative prompt's first.

        `history` counts the clean latent frames kept for a re-cache.
        """
        self._transformer, self._encode_text = transformer, encode_text
        self._request, self._spec, self._mesh = request, spec, mesh
        self._sampler, self._noise, self._store = sampler, noise, store
        self._window, self._history = window, history
        # Of the cache; from any thread.
        self.occupancy: Callable[[], Occupancy] = window.occupancy if window else Occupancy
        self._context_timestep = context_timestep
        self._grid = spec.grid(request.height, request.width)
        self._sequence = SequenceParallel(mesh, self._grid[0] * self._grid[1])
        self._layers = mesh.degrees.layers(mesh.place.stage, spec)
        self._last_stage = mesh.degrees.stages - 1
        self._link = Link(mesh.stage)
        self._coming: deque[tuple[Key, Handle]] = deque()
        self._inbox: dict[Key, Tensor] = {}
        self._outbox: dict[Key, Tensor] = {}
        self._finished: dict[int, Tensor] = {}
        self._text: TextKeys | None = None
        self._blocks: dict[int, Block] = {}
        self._past: dict[int, Tensor] = {}
        self._joint = lru_cache(8)(self._joint_attention)
        self.evaluations = 0

    def expect(self, edge: Edge, task: Task) -> None:
        """Post the receive of what another stage will send."""
        if edge.payload is Payload.LATENT:
            raise ValueError(f"the denoising lane takes no {edge.payload}")
        stages = self._mesh.degrees.stages
        frames, branches = self._length(task), 1 if edge.branch is not None else self._branches
        if edge.payload is Payload.HIDDEN:
            width = self._spec.heads * self._spec.head_dim
            shape: tuple[int, ...] = (branches, frames * len(self._sequence.own), width)
            handle = self._link.post(shape, self._transformer.dtype, task.stage - 1)
        else:
            shape = (branches, *self._shape(frames)[1:])
            handle = self._link.post(shape, self._transformer.dtype, stages - 1)
        self._coming.append(((edge.payload, edge.branch), handle))

    def receive(self, edge: Edge) -> None:
        """Wait for what another stage sent."""
        key, handle = self._coming.popleft()
        assert key == (edge.payload, edge.branch)
        self._inbox[key] = handle.wait()

    def send(self, edge: Edge) -> None:
        """Send to another stage, or put a finished block where the decoding lane takes it."""
        if edge.payload is Payload.LATENT:
            if self._mesh.rank == 0:  # who decodes too gets it from there
                self._finished[edge.block] = self._blocks[edge.block].latents
            self._blocks[edge.block].over = self._window is None  # or else a commit follows
            return
        to = 0 if edge.payload is Payload.FLOW else self._mesh.place.stage + 1
        self._link.send(self._outbox.pop((edge.payload, edge.branch)), to)

    def flush(self) -> None:
        """Wait until all that was sent has left and is counted; errors as of `Link.send`."""
        self._link.flush()

    def take(self, block: int) -> Tensor:
        """A finished block's latents, (1, C, f, h, w) float32."""
        return self._finished.pop(block)

    @torch.inference_mode()
    def run(self, task: Task) -> None:
        """Do one task."""
        match task.kind:
            case Kind.ENCODE:
                self._text = self._transformer.text_keys(self._encode_text(task.cue))
                if self._window is not None:
                    self._window.prompt(self._text)
            case Kind.RESTORE:
                self._restore(task)
            case Kind.DENOISE:
                self._denoise(task)
            case Kind.ADVANCE:
                flows = [key for key in self._inbox if key[0] is Payload.FLOW]
                self._advance(task, [self._inbox.pop(key) for key in flows])
            case Kind.COMMIT:
                self._commit(task)
            case Kind.RECACHE:
                self._recache(task)
            case _:
                raise ValueError(f"the denoising lane does not {task.kind}")

    def _denoise(self, task: Task) -> None:
        if task.step == 0 and task.stage == 0 and not task.branch:
            self._begin(task)
        self._evaluate(task, self._latents_of(task), self._sampler.timesteps[task.step])
        if self._last_stage == 0:
            self._advance(task, [self._outbox.pop((Payload.FLOW, None))])

    def _length(self, task: Task) -> int:
        """How many frames of a task this worker evaluates."""
        return task.length

    def _commit(self, task: Task) -> None:
        latents = self._latents_of(task)
        self._evaluate(task, latents, self._context_timestep)
        if latents is not None and task.branch in (None, self._branches - 1):
            self._remember(task.frames, latents)
            self._blocks[task.block].over = True

    def _latents_of(self, task: Task) -> Tensor | None:
        """Only the first stage has them."""
        return self._blocks[task.block].latents if task.stage == 0 else None

    def _recache(self, task: Task) -> None:
        past = None
        if task.stage == 0:
            past = torch.cat([self._past[frame] for frame in task.frames.frames()], dim=2)
        self._evaluate(task, past, self._context_timestep)

    @property
    def _branches(self) -> int:
        """How many branches of guidance this worker evaluates."""
        return (2 if self._request.guidance > 1 else 1) // self._mesh.degrees.cfg

    def _shape(self, frames: int) -> tuple[int, ...]:
        height, width = (side * self._spec.patch for side in self._grid)
        return (1, self._spec.latent_channels, frames, height, width)

    def _restore(self, task: Task) -> None:
        """Take a block out of the store, which is rank 0's alone."""
        latents = torch.zeros(self._shape(len(task.frames)), device=self._transformer.device)
        if self._mesh.rank == 0:
            kept = self._store.read(task.block)
            if kept is None:
                raise RuntimeError(f"block {task.block} was in the store and is no more")
            latents.copy_(kept)  # memory-mapped tensors are aligned otherwise, and then round so
        self._keep(task.block, Block(self._mesh.lane.broadcast(latents, 0)))

    def _begin(self, task: Task) -> None:
        noise = self._noise.initial(task.block, self._shape(len(task.frames)))
        solver = self._sampler.begin(task.block, self._noise)
        self._keep(task.block, Block(noise.to(self._transformer.device), solver))

    def _keep(self, index: int, block: Block) -> None:
        self._blocks = {i: other for i, other in self._blocks.items() if not other.over}
        self._blocks[index] = block

    def _advance(self, task: Task, flows: list[Tensor]) -> None:
        block = self._blocks[task.block]
        assert block.solver is not None
        flow = guided(torch.cat(flows), self._request.guidance, self._mesh.cfg)
        block.latents = block.solver.step(task.step, block.latents, flow)
        if task.last and self._mesh.rank == 0:
            self._store.write(task.block, block.latents)

    def _evaluate(self, task: Task, latents: Tensor | None, timestep: float) -> None:
        """Evaluate this worker's layers; what comes out goes to the outbox."""
        assert self._text is not None
        levels = torch.full((1, 1), timestep, device=self._transformer.device)
        text = self._text if task.branch is None else BranchKeys(self._text, task.branch)
        attention = self._attention(task, self._rows(task))
        self._run_layers(task, latents, levels, text, attention)

    def _rows(self, task: Task) -> slice:
        """Which rows of the batch a task is about."""
        return ALL if task.branch is None else slice(task.branch, task.branch + 1)

    def _run_layers(
        self, task: Task, latents: Tensor | None, levels: Tensor, text: Text, attention: Attention
    ) -> None:
        """`latents` (1, C, f, h, w) are there in the first stage; `levels` are (1, f) or (1, 1)."""
        frames, batch = self._length(task), self._branches if task.branch is None else 1
        model = self._transformer
        levels = levels.expand(batch, -1)
        if task.stage == 0:
            assert latents is not None
            hidden = model.embed(latents.expand(batch, -1, -1, -1, -1), levels)
            hidden = replace(hidden, tokens=self._sequence.split(hidden.tokens))
        else:
            tokens = self._inbox.pop((Payload.HIDDEN, task.branch))
            hidden = model.resume(tokens, levels, (frames, *self._grid))
        hidden = model.layers(hidden, self._layers.start, self._layers.stop, attention, text)
        self.evaluations += 1
        if task.stage < self._last_stage:
            self._outbox[(Payload.HIDDEN, task.branch)] = hidden.tokens
        elif task.kind is Kind.DENOISE:
            patches = self._sequence.gather(model.project(hidden), frames)
            self._outbox[(Payload.FLOW, task.branch)] = model.assemble(patches, hidden.grid)

    def _attention(self, task: Task, rows: slice) -> Attention:
        if self._window is not None:
            return self._window.attention(task.frames, task.context, rows)
        return self._joint(task.frames)

    def _joint_attention(self, frames: Span) -> JointAttention:
        table = segment_table(
            frames.frames(),
            self._grid,
            self._spec.head_dim,
            self._transformer.device,
            self._sequence,
        )
        return JointAttention(self._sequence, len(frames), table)

    def _remember(self, frames: Span, latents: Tensor) -> None:
        if self._history:
            self._past |= dict(zip(frames.frames(), latents.split(1, dim=2), strict=True))
            for old in [frame for frame in self._past if frame < frames.stop - self._history]:
                del self._past[old]


def make_window(
    transformer: WanTransformer,
    spec: ModelSpec,
    retention: Retention,
    request: Request,
    total_frames: int | None,
    mesh: Mesh,
) -> Window:
    """A worker's window over its cache: its layers, its tokens, its heads, its branches."""
    rows, columns = spec.grid(request.height, request.width)
    sequence = SequenceParallel(mesh, rows * columns)
    layers = mesh.degrees.layers(mesh.place.stage, spec)
    cache = KVCache(
        layers=range(layers.start, layers.stop),
        capacity=retention.capacity(total_frames) * len(sequence.segment),
        batch=(2 if request.guidance > 1 else 1) // mesh.degrees.cfg,
        heads=spec.heads // mesh.degrees.ulysses,
        head_dim=spec.head_dim,
        device=transformer.device,
        dtype=transformer.dtype,
    )
    return Window(cache, retention, (rows, columns), spec.head_dim, transformer.device, sequence)


def make_launches(
    transformer: WanTransformer, spec: ModelSpec, frames: int, request: Request, mesh: Mesh
) -> Launches:
    """A worker's share of launches that keep the keys of so many frames at once."""
    rows, columns = spec.grid(request.height, request.width)
    sequence = SequenceParallel(mesh, rows * columns)
    layers = mesh.degrees.layers(mesh.place.stage, spec)
    store = KeyStore(
        layers=range(layers.start, layers.stop),
        frames=frames,
        tokens=len(sequence.segment),
        batch=(2 if request.guidance > 1 else 1) // mesh.degrees.cfg,
        heads=spec.heads // mesh.degrees.ulysses,
        head_dim=spec.head_dim,
        device=transformer.device,
        dtype=transformer.dtype,
    )
    device = transformer.device
    return Launches(store, (rows, columns), spec.head_dim, device, sequence, mesh.clip)


def branch_span(mesh: Mesh, guidance: float) -> Span:
    """The branches of guidance that a worker evaluates, out of (negative, prompt)."""
    return shares(2 if guidance > 1 else 1, mesh.degrees.cfg)[mesh.place.cfg]
