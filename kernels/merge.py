"""Attention over parts of the keys, merged into attention over all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST = torch.finfo(torch.float32).min


@dataclass(slots=True)
class Partial:
    """Attention over the keys that were seen so far, in float32 whatever the parts come in.

    Attributes:
        out: (B, S, H, D) float32, 0 in rows that have seen no key.
        lse: (B, H, S) float32, log of the sum of the exponentials of the scores; -inf in rows that
            have seen no key.
    """

    out: Tensor
    lse: Tensor

    @classmethod
    def start(cls, out: Tensor, lse: Tensor) -> Partial:
        """From a first part: out (B, S, H, D) of any floating dtype, lse (B, H, S) float32.

        Both are left as they are: what is merged in place is a copy.

        Raises:
            TypeError: lse was rounded, or is a double.
        """
        _check(lse)
        return cls(out.to(torch.float32, copy=True), lse)

    def add(self, out: Tensor, lse: Tensor) -> None:
        """Take in another part, of keys that are in no other; shapes and errors as in `start`.

        An empty part, or an empty row of one, is 0 with lse -inf and changes nothing.
        """
        _check(lse)
        # exp(lse) / (exp(lse) + exp(self.lse)), but without an overflow, and from a difference
        # that large scores do not round away. The clamp keeps -inf minus -inf from being NaN.
        share = torch.sigmoid(lse - self.lse.clamp(min=LOWEST))
        self.out.lerp_(out.to(torch.float32), share.transpose(1, 2).unsqueeze(-1))
        self.lse = torch.logaddexp(self.lse, lse)

    def result(self, dtype: torch.dtype) -> Tensor:
        """The output over all parts, (B, S, H, D), rounded to `dtype` once."""
        return self.out.to(dtype)


def _check(lse: Tensor) -> None:
    if lse.dtype != torch.float32:
        raise TypeError(f"a log-sum-exp is kept in float32, got {lse.dtype}")
