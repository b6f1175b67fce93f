"""What a block begins from: noise, or the frames of a video with noise mixed in.

Video to video as StreamDiffusionV2 does it (arXiv 2511.07399, and its code): a block's latents z
become (1 - s) z + s noise, and its first step is at the level s. The more the picture moves, the
less noise there is, so that fast motion is kept to; s changes slowly from block to block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from longtake.parallel.mesh import Mesh
from longtake.runtime.noise import Noise
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec

Frame = npt.NDArray[np.uint8]  # (H, W, 3) RGB


class Source(Protocol):
    """Where a run's blocks begin. They are asked for in order."""

    def ready(self, block: int) -> bool:
        """Whether there is something to make this block of; may wait for it. Only rank 0 asks."""
        ...

    def timestep(self, block: int) -> float | None:
        """What the model is told at the block's first step; None: as the sampler has it. Ask before
        `latents`."""
        ...

    def latents(self, block: int, shape: tuple[int, ...]) -> Tensor:
        """The block at its first level, (1, C, f, h, w) float32. Ask once."""
        ...


@dataclass(frozen=True)
class NoiseSource:
    """Noise alone: video from text."""

    noise: Noise

    def ready(self, block: int) -> bool:
        """Always."""
        return True

    def timestep(self, block: int) -> None:
        """The sampler's own."""

    def latents(self, block: int, shape: tuple[int, ...]) -> Tensor:
        """See `Noise.initial`."""
        return self.noise.initial(block, shape)


@dataclass(frozen=True)
class Mixing:
    """How much noise goes into the frames of a video.

    Attributes:
        noise_scale: its share where nothing moves, 0 .. 1.
        motion: how much less that is where all moves.
        told_less: by how many timesteps of 1000 the model is told a lower level than that.
        normalise: whether the encoded frames are normalised, which the weights that
            StreamDiffusionV2 published were not trained with.
    """

    noise_scale: float = 0.8
    motion: float = 0.1
    told_less: int = 0
    normalise: bool = True

    FULL = 0.2  # root mean square change of a frame, in units of half the range, that is all motion
    INERTIA = 0.1  # how much of the block before stays

    def __post_init__(self) -> None:
        if not 0 < self.noise_scale <= 1:
            raise UserError(f"noise_scale must be within 0 .. 1, got {self.noise_scale:g}")
        if not 0 <= self.motion < self.noise_scale:
            raise UserError(
                f"motion must be at least 0 and less than noise_scale ({self.noise_scale:g}), got "
                f"{self.motion:g}"
            )
        least = int(1000 * (self.noise_scale - self.motion))
        if not 0 <= self.told_less < least:
            raise UserError(f"told_less must be within 0 .. {least - 1}, got {self.told_less}")

    @property
    def least_timestep(self) -> int:
        """The lowest first step of a block."""
        return self.timestep(self.noise_scale - self.motion)

    def timestep(self, share: float) -> int:
        """The first step of a block with that share of noise."""
        return int(1000 * share) - self.told_less

    def next(self, before: float, change: float) -> float:
        """The share of noise of a block whose frames change by up to `change`."""
        moves = min(max(change / self.FULL, 0.0), 1.0)
        return (1 - self.INERTIA) * (self.noise_scale - self.motion * moves) + self.INERTIA * before


@dataclass(frozen=True)
class Start:
    """A block of a video: its latents, without noise, and the share of noise that goes in."""

    latents: Tensor
    share: float


class VideoSource:
    """The frames of a video, encoded block by block; rank 0's. A last block is filled up with the
    last frame."""

    def __init__(
        self,
        frames: Iterable[Frame],
        encode: Callable[[Tensor], Tensor],
        noise: Noise,
        spec: ModelSpec,
        size: tuple[int, int],
        mixing: Mixing,
        ahead: Callable[[Iterator[Start]], Iterator[Start]] = iter,
    ) -> None:
        """`encode` takes the frames of the next latent frame, (1, 3, n, H, W) in [-1, 1], and gives
        its latents.

        `size` is (width, height) in pixels; frames of another one are scaled and cut to it. `ahead`
        may encode blocks before they are asked for.
        """
        self._frames: Iterator[Frame] = iter(frames)
        self._encode, self._noise, self._spec, self._size = encode, noise, spec, size
        self._mixing = mixing
        self._starts = ahead(self._encoded())
        self._waiting: dict[int, Start] = {}
        self._read = 0  # blocks whose frames have been taken

    def ready(self, block: int) -> bool:
        """Whether frames are left; waits for all of the block's.

        Raises:
            UserError: a frame is no picture; and whatever the iterator of frames raises.
        """
        if block in self._waiting:
            return True
        if block != self._read:
            raise ValueError(f"the frames of block {block} are not the next ones")
        start = next(self._starts, None)
        if start is None:
            return False
        self._read += 1
        self._waiting[block] = start
        return True

    def timestep(self, block: int) -> float:
        """By the motion of its frames."""
        return float(self._mixing.timestep(self._of(block).share))

    def latents(self, block: int, shape: tuple[int, ...]) -> Tensor:
        """Encoded, with noise mixed in; on the device of the encoder."""
        start = self._of(block)
        del self._waiting[block]
        noise = self._noise.initial(block, shape).to(start.latents.device)
        return start.share * noise + (1 - start.share) * start.latents

    def _of(self, block: int) -> Start:
        if not self.ready(block):
            raise ValueError(f"there are no frames for block {block}")
        return self._waiting[block]

    def _encoded(self) -> Iterator[Start]:
        """Every block; each latent frame of it is encoded as soon as its frames are there."""
        share = self._mixing.noise_scale
        latest: Tensor | None = None
        for block in count():
            before, change, latents = latest, 0.0, []
            for index in range(self._spec.block_frames):
                pixels = self._take(block * self._spec.block_frames + index, latest)
                if pixels is None:
                    return
                if latest is not None:
                    change = max(change, largest_change(torch.cat([latest, pixels], dim=1)))
                latest = pixels[:, -1:]
                with torch.inference_mode():
                    latents.append(self._encode(pixels.unsqueeze(0)).float())
            if before is not None:
                share = self._mixing.next(share, change)
            yield Start(torch.cat(latents, dim=2), share)

    def _take(self, frame: int, latest: Tensor | None) -> Tensor | None:
        """The pixels of a latent frame, (3, n, H, W); None if the video ends before its block."""
        wanted = self._spec.pixel_frames(frame + 1) - self._spec.pixel_frames(frame)
        taken = [to_pixels(picture, self._size) for picture in islice(self._frames, wanted)]
        if not taken and frame % self._spec.block_frames == 0:
            return None
        if not taken:
            assert latest is not None
            taken = [latest[:, 0]]
        return torch.stack(taken + taken[-1:] * (wanted - len(taken)), dim=1)


class SharedSource:
    """Rank 0's source, for every worker of a mesh. The others have none of their own."""

    def __init__(self, mesh: Mesh, source: Source | None) -> None:
        if (mesh.rank == 0) != (source is not None):
            raise ValueError("rank 0 has the source, and only rank 0")
        self._mesh, self._source = mesh, source

    def ready(self, block: int) -> bool:
        """As rank 0's."""
        if self._source is None:
            raise ValueError("only rank 0 decides which blocks begin")
        return self._source.ready(block)

    def timestep(self, block: int) -> float | None:
        """Told by rank 0 through the control store; every worker asks once for each block."""
        key = f"source/{block}"
        if self._source is None:
            told: float | None = json.loads(self._mesh.store.take(key, self._mesh.world.size - 1))
            return told
        timestep = self._source.timestep(block)
        if self._mesh.world.size > 1:
            self._mesh.store.set(key, json.dumps(timestep))
        return timestep

    def latents(self, block: int, shape: tuple[int, ...]) -> Tensor:
        """Sent by rank 0 to all workers of its lane, which ask together."""
        latents = torch.zeros(shape, device=self._mesh.device)
        if self._source is not None:
            latents.copy_(self._source.latents(block, shape))
        return self._mesh.lane.broadcast(latents, 0)


def largest_change(pixels: Tensor) -> float:
    """The largest root mean square difference of a frame to the one before, of (3, n, H, W)."""
    return float(pixels.diff(dim=1).square().mean(dim=(0, 2, 3)).sqrt().max())


def to_pixels(frame: Frame, size: tuple[int, int]) -> Tensor:
    """A picture, scaled and cut around its middle to (width, height), as (3, H, W) in [-1, 1].

    Raises:
        UserError: it is none.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise UserError(
            "a frame of the input must be (height, width, 3) uint8 RGB, got "
            f"{tuple(frame.shape)} {frame.dtype}"
        )
    if frame.shape[:2] != (size[1], size[0]):
        frame = np.asarray(ImageOps.fit(Image.fromarray(frame), size))
    return torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 127.5 - 1


def at_rate(frames: Iterable[Frame], rate: float, fps: float) -> Iterator[Frame]:
    """Frames of `rate` a second as `fps` a second: the one that is shown at each time."""
    wanted = 0
    for index, frame in enumerate(frames):
        while wanted * rate < (index + 1) * fps:
            yield frame
            wanted += 1
