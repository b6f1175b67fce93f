"""The worker of the VAE's lane."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from longtake.runtime.lanes import BackgroundLane
from longtake.runtime.model import Model
from longtake.runtime.wan_vae import DecodeStream
from longtake.scheduler.task import Edge, Task


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

    def expect(self, edge: Edge, task: Task) -> None:
        """Blocks come from within this process: there is nothing to make ready."""

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
