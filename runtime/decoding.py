"""The lane that decodes: finished blocks become frames beside the denoising, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from longtake.parallel.errors import CommunicationError
from longtake.runtime.aside import Aside
from longtake.runtime.lanes import BackgroundLane
from longtake.runtime.wan_vae import DecodeStream
from longtake.scheduler.plan import DECODE
from longtake.scheduler.task import Edge, Task
from longtake.scheduler.timeline import Action, Activity, Record

WAITING = 2  # blocks that wait for the decoder when another one begins


class Decoder(Protocol):
    """One worker's part in decoding a video."""

    @property
    def most(self) -> int:
        """How many times as many latent frames are best decoded at once as by one worker."""
        ...

    def begin(self) -> None:
        """Wait until all others are about to decode as well; then `decode` at once."""
        ...

    def decode(self, latents: Tensor) -> np.ndarray | None:
        """The next latent frames, (1, C, f, h, w), as (n, H, W, 3) uint8 on rank 0.

        The others have no latents; theirs are of the same shape, and not read.
        """
        ...

    def close(self) -> None:
        """After the last frames."""
        ...

    def give_up(self) -> None:
        """Let no other thread wait in this decoder any more, nor begin to."""
        ...


class LoneDecoder:
    """Decodes without help."""

    most = 1

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self._stream = DecodeStream(vae)

    def begin(self) -> None:
        """There is nobody to wait for."""

    def decode(self, latents: Tensor) -> np.ndarray:
        """See `Decoder`."""
        return to_images(to_bytes(self._stream.decode(latents)))

    def close(self) -> None:
        """Nothing is left to do."""

    def give_up(self) -> None:
        """What is queued is soon done."""


class DecodeWorker:
    """One worker's share of the decoding lane; rank 0 has the latents and gets the frames.

    A context: left by an error it gives up what waits, otherwise it finishes that.
    """

    def __init__(
        self,
        decoder: Decoder,
        take: Callable[[Task], Tensor],
        piece: int,
        device: torch.device,
        rank: int,
        record: Record,
        deliver: Callable[[np.ndarray], None] = lambda frames: None,
        on_decoded: Callable[[int, float], None] = lambda frames, seconds: None,
    ) -> None:
        """`take` gives the latents of a DECODE's block; `deliver` gets frames on rank 0.

        `piece` latent frames are decoded at a time, by each stage of the decoder; `on_decoded`
        hears how many, and the seconds.
        """
        self._decoder, self._take, self._piece = decoder, take, piece * decoder.most
        self._rank, self._record = rank, record
        self._deliver, self._on_decoded = deliver, on_decoded
        self._aside = Aside(device)
        self._lane: BackgroundLane[tuple[int, Callable[[], Tensor]]]
        self._lane = BackgroundLane(DECODE, self._decode, depth=None)

    def expect(self, edge: Edge, task: Task) -> None:
        """Blocks come from within this process: there is nothing to make ready."""

    def receive(self, edge: Edge) -> None:
        """They are taken when they are queued."""

    def send(self, edge: Edge) -> None:
        """Nothing leaves this lane but frames."""
        raise ValueError(f"the decoding lane sends no {edge.payload}")

    def run(self, task: Task) -> None:
        """Queue a block."""
        self._lane.put((task.block, self._aside.hand_over(self._take(task))))

    def wait_for_room(self) -> None:
        """Wait until decoding, and who takes the frames, are hardly behind.

        Rank 0 does, before it begins a block. There the others can wait for it however long that
        takes, which they can't for a share of a task.
        """
        self._lane.wait_for_room(WAITING)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._decoder.give_up()
        try:
            self._lane.close()
        except CommunicationError:  # what ended the walk matters more
            if error is None:
                raise
        if error is None:
            self._decoder.close()

    @torch.inference_mode()
    def _decode(self, item: tuple[int, Callable[[], Tensor]]) -> None:
        block, arrive = item
        with self._aside:
            for latents in arrive().split(self._piece, dim=2):
                self._decoder.begin()
                start = time.monotonic()
                frames = self._decoder.decode(latents)
                self._aside.settle()
                stop, name = time.monotonic(), f"decode of block {block}"
                self._record(Action(self._rank, Activity.COMPUTE, name, start, stop, lane=DECODE))
                self._on_decoded(latents.shape[2], stop - start)
                if frames is not None:
                    self._deliver(frames)


@torch.inference_mode()
def warm_up(decoder: Decoder, latents: Tensor) -> float:
    """Decode a latent frame of nothing twice; returns what the second one takes, in seconds."""
    seconds = 0.0
    for _ in range(2):
        decoder.begin()
        start = time.monotonic()
        decoder.decode(latents)
        seconds = time.monotonic() - start
    decoder.close()
    return seconds


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels (1, 3, n, H, W) in [-1, 1] to uint8 ones."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_images(pixels: Tensor) -> np.ndarray:
    """Pixels (1, 3, n, H, W) as images (n, H, W, 3) in main memory."""
    return pixels[0].permute(1, 2, 3, 0).cpu().numpy()
