"""Attention against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longtake.kernels.attention import attention


def heads(length: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, length, 3, 8, generator=generator).to(dtype)


def defined(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.double()).to(q.dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_is_softmax_attention(dtype: torch.dtype, tolerance: float, masked: bool) -> None:
    q, k, v = heads(5, 0, dtype), heads(7, 1, dtype), heads(7, 2, dtype)
    mask = torch.arange(7) <= torch.arange(5)[:, None] + 1 if masked else None
    out = attention(q, k, v, mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out, defined(q, k, v, mask), atol=tolerance, rtol=0)


def test_07_the_order_of_keys_does_not_matter() -> None:
    q, k, v = heads(5, 0), heads(7, 1), heads(7, 2)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        attention(q, k[:, order], v[:, order]), attention(q, k, v), atol=1e-6, rtol=0
    )


def test_masked_keys_have_no_say() -> None:
    q, k, v = heads(5, 0), heads(7, 1), heads(7, 2)
    mask = (torch.arange(7) < 4).expand(5, 7)
    k[:, 4:], v[:, 4:] = 1e4, torch.nan_to_num(v[:, 4:] * 1e4)
    torch.testing.assert_close(
        attention(q, k, v, mask), attention(q, k[:, :4], v[:, :4]), atol=1e-6, rtol=0
    )
