"""Noise as a function of (seed, block, step) alone.

Never of the rank, the device, the number of workers, the grouping of launches, or a resume.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor

from longtake.scheduler.errors import UserError


class Noise(Protocol):
    """Where the Gaussian noise of a run comes from."""

    def initial(self, block: int, shape: tuple[int, ...]) -> Tensor:
        """The noise that a block starts from, float32 on the CPU."""
        ...

    def renoise(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """The noise added back after a step of a block, float32 on the CPU."""
        ...


class SeededNoise:
    """Independent noise for every (block, step), made on the CPU."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def initial(self, block: int, shape: tuple[int, ...]) -> Tensor:
        """See `Noise`."""
        return self._draw(f"{self._seed}/{block}/start", shape)

    def renoise(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """See `Noise`."""
        return self._draw(f"{self._seed}/{block}/{step}", shape)

    @staticmethod
    def _draw(name: str, shape: tuple[int, ...]) -> Tensor:
        digest = hashlib.sha256(name.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randn(shape, generator=generator)


class PooledNoise(SeededNoise):
    """Coordinated noise of DualParal (arXiv 2505.21070): all blocks take their initial noise from
    one pool of frames.

    The pool is a block and its context long. For each block its first `frames` are shuffled and put
    last; a block takes those, block 0 all. So a block and the `context` frames before it have each
    frame of the pool once. A shorter block takes the first of its frames.
    """

    def __init__(self, seed: int, frames: int, context: int) -> None:
        """`frames` is how many latent frames a block has; `context` at most as many."""
        super().__init__(seed)
        self._frames, self._context = frames, context
        self._pool: Tensor | None = None
        self._at = -1
        self._order = list(range(frames + context))

    def initial(self, block: int, shape: tuple[int, ...]) -> Tensor:
        """See `Noise`; `shape` is (1, C, f, h, w)."""
        whole = (*shape[:2], self._frames + self._context, *shape[3:])
        if self._pool is None or self._pool.shape != whole:
            self._pool = self.pool(whole)
        order = self._order_of(block)[self._context if block else 0 :]
        return self._pool[:, :, order[: shape[2]]]

    def pool(self, shape: tuple[int, ...]) -> Tensor:
        """All frames, before the first is shuffled."""
        return self._draw(f"{self._seed}/pool", shape)

    def permutation(self, block: int) -> list[int]:
        """How the first frames of the pool are shuffled for a block."""
        return self._draw(f"{self._seed}/{block}/shuffle", (self._frames,)).argsort().tolist()

    def _order_of(self, block: int) -> list[int]:
        """The pool's frames after the shuffle for a block; that of the latest block is kept."""
        if block < self._at:
            self._at, self._order = -1, list(range(self._frames + self._context))
        for each in range(self._at + 1, block + 1):
            first, last = self._order[: self._frames], self._order[self._frames :]
            self._order = last + [first[i] for i in self.permutation(each)]
        self._at = block
        return self._order


class RescheduledNoise(SeededNoise):
    """FreeNoise (arXiv 2310.15169): all of a video starts from the noise of its first frames.

    Runs of `unit` of those frames are shuffled, each in itself, for every later part of the video;
    so frames that start from the same noise stay apart.
    """

    def __init__(self, seed: int, unit: int, window: int | None = None) -> None:
        """`window` is the number of first frames; None: as many as a block has."""
        super().__init__(seed)
        if unit < 1:
            raise UserError(f"noise is shuffled in runs of at least 1 latent frame, got {unit}")
        self._unit, self._window = unit, window

    def initial(self, block: int, shape: tuple[int, ...]) -> Tensor:
        """See `Noise`; `shape` is (1, C, f, h, w)."""
        one = (*shape[:2], 1, *shape[3:])
        window = shape[2] if self._window is None else self._window
        pool = [self._draw(f"{self._seed}/pool/{i}", one) for i in range(min(window, shape[2]))]
        order = [
            frame
            for first in range(0, shape[2], window)
            for frame in self.order(block, first, min(window, shape[2] - first))
        ]
        return torch.cat([pool[frame] for frame in order], dim=2)

    def order(self, block: int, first: int, frames: int) -> list[int]:
        """Which noise the frames from `first` on of a block start from."""
        if block == 0 and first == 0:
            return list(range(frames))
        found: list[int] = []
        for start in range(0, frames, self._unit):
            run = min(self._unit, frames - start)
            keys = self._draw(f"{self._seed}/{block}/{first + start}/shuffle", (run,))
            found += [start + i for i in keys.argsort().tolist()]
        return found
