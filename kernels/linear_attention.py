"""Linear attention with rotary positions, as SANA-Video (arXiv 2509.24695) has it.

Softmax gives way to a feature map, phi = ReLU, so what a query sees of any number of keys is

    out = rotate(phi(q)) @ sum(rotate(phi(k)) v^T) / (phi(q) . sum(phi(k)))

and the two sums are all that needs to be kept of the past. Positions turn the numerator alone, so
the denominator never gets negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu

from longtake.kernels.rotary import rotate

LEAST = 1e-6  # added to the denominator, which is 0 where a query or all keys have no feature


@dataclass(frozen=True)
class LinearState:
    """What is kept of keys and values, in float32 whatever they come in.

    Attributes:
        mixed: (B, H, D, D), the sum of rotated features of keys times values.
        mass: (B, H, D), the sum of features of keys.
    """

    mixed: Tensor
    mass: Tensor

    @classmethod
    def of(cls, k: Tensor, v: Tensor, table: Tensor) -> LinearState:
        """Of keys and values, (B, S, H, D), at the positions of `table`, (S, D // 2, 2)."""
        features = relu(k.float())
        turned = rotate(features, table)
        mixed = torch.einsum("bshd,bshe->bhde", turned, v.float())
        return cls(mixed, features.sum(1))

    def __add__(self, other: LinearState) -> LinearState:
        return LinearState(self.mixed + other.mixed, self.mass + other.mass)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.mixed.nbytes + self.mass.nbytes


def linear_attention(q: Tensor, table: Tensor, state: LinearState) -> Tensor:
    """What queries (B, S, H, D) at the positions of `table` see of the keys in `state`."""
    features = relu(q.float())
    mixed = torch.einsum("bshd,bhde->bshe", rotate(features, table), state.mixed)
    mass = torch.einsum("bshd,bhd->bsh", features, state.mass)
    return (mixed / (mass.unsqueeze(-1) + LEAST)).type_as(q)
