"""The workers behind the loop: one denoises, one decodes in the background."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from longtake.kernels.rotary import rotary_table
from longtake.runtime.contexts import JointAttention, Window
from longtake.runtime.kv_cache import KVCache
from longtake.runtime.lanes import BackgroundLane
from longtake.runtime.model import Model
from longtake.runtime.noise import Noise
from longtake.runtime.samplers import BlockSampler, Sampler
from longtake.runtime.wan_transformer import Attention, Hidden, TextKeys, WanTransformer
from longtake.runtime.wan_vae import DecodeStream
from longtake.scheduler.request import Request
from longtake.scheduler.retention import Retention
from longtake.scheduler.task import Edge, Kind, Span, Task


class BlockStore(Protocol):
    """Where finished blocks are kept; the journal is one."""

    def read(self, block: int) -> Tensor | None:
        """A finished block's latents, or None if it must be made."""
        ...

    def write(self, block: int, latents: Tensor) -> None:
        """Keep a finished block's latents."""
        ...


class DenoiseWorker:
    """Encodes prompts, denoises blocks, commits them to the cache.

    A block that the store already holds is not denoised again, only committed; so a resumed run
    rebuilds its cache from the very latents that the first run kept, to the same bits.
    """

    def __init__(
        self,
        transformer: WanTransformer,
        encode_text: Callable[[int], Tensor],
        request: Request,
        grid: tuple[int, int],
        patch: int,
        sampler: Sampler,
        noise: Noise,
        store: BlockStore,
        window: Window | None,
        history: int,
        context_timestep: float = 0.0,
    ) -> None:
        """`encode_text` gives a cue's embeddings, with the negative prompt's first under guidance.

        `grid` is in patches, `history` counts the clean latent frames kept for a re-cache.
        """
        self._transformer, self._encode_text = transformer, encode_text
        self._request, self._grid, self._patch = request, grid, patch
        self._sampler, self._noise, self._store = sampler, noise, store
        self._window, self._history = window, history
        self._context_timestep = context_timestep
        self._text: TextKeys | None = None
        self._latents: Tensor | None = None
        self._solver: BlockSampler | None = None
        self.restored = False  # whether the present block came from the store
        self._past: dict[int, Tensor] = {}
        self._outbox: dict[int, Tensor] = {}
        self._joint: tuple[Span, JointAttention] | None = None
        self.evaluations = 0

    def receive(self, edge: Edge) -> None:
        """Nothing comes to this lane."""
        raise ValueError(f"the denoising lane takes no {edge.payload}")

    def send(self, edge: Edge) -> None:
        """Put a finished block's latents where the next lane takes them."""
        assert self._latents is not None
        self._outbox[edge.block] = self._latents

    def take(self, block: int) -> Tensor:
        """The latents that were sent, (1, C, f, h, w) float32."""
        return self._outbox.pop(block)

    @torch.inference_mode()
    def run(self, task: Task) -> None:
        """Do one task."""
        if task.kind is Kind.ENCODE:
            self._text = self._transformer.text_keys(self._encode_text(task.cue))
        elif task.kind is Kind.DENOISE:
            self._denoise(task)
        elif task.kind is Kind.COMMIT:
            assert self._latents is not None
            self._evaluate(task, self._latents, self._context_timestep)
            self._remember(task.frames, self._latents)
        elif task.kind is Kind.RECACHE:
            past = torch.cat([self._past[frame] for frame in task.frames.frames()], dim=2)
            self._evaluate(task, past, self._context_timestep)
        else:
            raise ValueError(f"the denoising lane does not {task.kind}")

    def _denoise(self, task: Task) -> None:
        if task.step == 0:
            self._begin(task)
        if self.restored:
            return
        assert self._latents is not None and self._solver is not None
        hidden = self._evaluate(task, self._latents, self._sampler.timesteps[task.step])
        flow = self._guided(self._transformer.head(hidden))
        self._latents = self._solver.step(task.step, self._latents, flow)
        if task.last:
            self._store.write(task.block, self._latents)

    def _begin(self, task: Task) -> None:
        device = self._transformer.device
        kept = self._store.read(task.block)
        self.restored = kept is not None
        if kept is not None:
            # a copy: memory-mapped tensors are aligned otherwise, and then round otherwise
            self._latents = kept.to(device, copy=True)
            return
        channels = self._transformer.module.config.in_channels
        height, width = (side * self._patch for side in self._grid)
        shape = (1, channels, len(task.frames), height, width)
        self._latents = self._noise.initial(task.block, shape).to(device)
        self._solver = self._sampler.begin(task.block, self._noise)

    def _evaluate(self, task: Task, latents: Tensor, timestep: float) -> Hidden:
        assert self._text is not None
        batch = 2 if self._request.guidance > 1 else 1
        levels = torch.full((batch, 1), timestep, device=latents.device)
        hidden = self._transformer.embed(latents.expand(batch, -1, -1, -1, -1), levels)
        layers = self._transformer.module.config.num_layers
        self.evaluations += 1
        return self._transformer.layers(hidden, 0, layers, self._attention(task), self._text)

    def _attention(self, task: Task) -> Attention:
        if self._window is not None:
            return self._window.attention(task.frames, task.context)
        if self._joint is None or self._joint[0] != task.frames:
            config = self._transformer.module.config
            table = rotary_table(
                task.frames.frames(),
                *self._grid,
                config.attention_head_dim,
                self._transformer.device,
            )
            self._joint = (task.frames, JointAttention(table))
        return self._joint[1]

    def _guided(self, flow: Tensor) -> Tensor:
        if self._request.guidance == 1:
            return flow
        without, with_ = flow.chunk(2)
        return without + self._request.guidance * (with_ - without)

    def _remember(self, frames: Span, latents: Tensor) -> None:
        if self._history:
            self._past |= dict(zip(frames.frames(), latents.split(1, dim=2), strict=True))
            for old in [frame for frame in self._past if frame < frames.stop - self._history]:
                del self._past[old]


class DecodeWorker:
    """Decodes blocks to uint8 frames beside the denoising lane and hands them on in order."""

    def __init__(
        self,
        model: Model,
        take: Callable[[int], Tensor],
        deliver: Callable[[np.ndarray], None],
        piece: int,
        on_decoded: Callable[[int, int, float], None],
    ) -> None:
        """`take` gives a block's latents; `deliver` gets frames as (n, H, W, 3) uint8.

        `piece` latent frames are decoded at a time; `on_decoded` hears block, latent frames,
        seconds.
        """
        self._stream = DecodeStream(model.vae)
        self._take, self._deliver, self._piece, self._on_decoded = take, deliver, piece, on_decoded
        self._inbox: dict[int, Tensor] = {}
        self._lane: BackgroundLane[tuple[int, Tensor]] = BackgroundLane("decode", self._decode)

    def receive(self, edge: Edge) -> None:
        """Take a finished block's latents."""
        self._inbox[edge.block] = self._take(edge.block)

    def send(self, edge: Edge) -> None:
        """Nothing leaves this lane but frames."""
        raise ValueError(f"the decoding lane sends no {edge.payload}")

    def run(self, task: Task) -> None:
        """Queue a block; waits while decoding is two blocks behind."""
        self._lane.put((task.block, self._inbox.pop(task.block)))

    def close(self) -> None:
        """Finish what is queued."""
        self._lane.close()

    @torch.inference_mode()
    def _decode(self, item: tuple[int, Tensor]) -> None:
        block, latents = item
        for part in latents.split(self._piece, dim=2):
            start = time.monotonic()
            pixels = self._stream.decode(part)[0]  # (3, n, H, W)
            bytes_ = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            frames = bytes_.permute(1, 2, 3, 0).cpu().numpy()
            self._on_decoded(block, part.shape[2], time.monotonic() - start)
            self._deliver(frames)


def make_cache(
    model: Model, retention: Retention, request: Request, total_frames: int | None
) -> KVCache:
    """The cache that a request needs under a retention policy."""
    rows, columns = model.spec.grid(request.height, request.width)
    return KVCache(
        layers=model.spec.layers,
        capacity=retention.capacity(total_frames) * rows * columns,
        batch=2 if request.guidance > 1 else 1,
        heads=model.spec.heads,
        head_dim=model.spec.head_dim,
        device=model.transformer.device,
        dtype=model.transformer.dtype,
    )
