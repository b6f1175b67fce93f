"""Noise as a function of (seed, block, step) alone.

Never of the rank, the device, the number of workers, the grouping of launches, or a resume.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor


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
