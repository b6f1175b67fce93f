"""Attention on one device."""

from __future__ import annotations

import torch
from torch import Tensor

from longtake.kernels.attention_backends import Backend, choose, refusal
from longtake.kernels.attention_operators import sdpa
from longtake.scheduler.errors import UserError


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention.

    Args:
        q: (B, Sq, H, D). k, v: (B, Sk, H, D).
        mask: boolean, broadcastable to (B, H, Sq, Sk), True where a query may look; None: all.

    Returns:
        (B, Sq, H, D) in the dtype of q.
    """
    return sdpa(q, k, v, mask)[0]


def attention_with_lse(
    q: Tensor, k: Tensor, v: Tensor, backend: Backend | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention over a part of the keys, with what it takes to merge it with other parts.

    Args:
        q: (B, Sq, H, D). k, v: (B, Sk, Hk, D), where Hk divides H and each key head serves H / Hk
            neighbouring query heads. Sq and Sk may be 0.
        backend: None: the preferred one that is capable.
        mask: boolean, broadcastable to (B, H, Sq, Sk), True where a query may look; None: all.

    Returns:
        out (B, Sq, H, D) in the dtype of q, and the natural log of the sum of the exponentials of
        each query's scores, (B, H, Sq) float32, contiguous. A query that sees no key has out 0 and
        lse -inf.

    Raises:
        UserError: no backend, or not this one, can do it; the reason is told.
        ValueError: Hk does not divide H.
    """
    device, dtype, head_dim = q.device, q.dtype, q.shape[-1]
    if backend is None:
        backend = choose(device, dtype, head_dim, need_lse=True, need_mask=mask is not None)
    else:
        reason = refusal(backend, device, dtype, head_dim, True, mask is not None)
        if reason is not None:
            raise UserError(f"attention backend {backend.name!r} cannot be used: {reason}")
    heads, key_heads = q.shape[2], k.shape[2]
    if heads != key_heads:
        if heads % key_heads:
            raise ValueError(f"{key_heads} key heads cannot serve {heads} query heads evenly")
        k, v = (x.repeat_interleave(heads // key_heads, dim=2) for x in (k, v))
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q), _unseen(q)  # some kernels end the process on empty sets
    if mask is None:
        return _run(backend, q, k, v, None)
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    mask = mask.expand(*mask.shape[:3], k.shape[1])
    out, lse = _run(backend, q, k, v, mask)
    blind = ~mask.any(-1)  # (B or 1, H or 1, Sq or 1): what kernels return there differs
    return (
        out.masked_fill(blind.transpose(1, 2).unsqueeze(-1), 0.0),
        lse.masked_fill(blind, -torch.inf),
    )


def _unseen(q: Tensor) -> Tensor:
    batch, queries, heads, _ = q.shape
    return q.new_full((batch, heads, queries), -torch.inf, dtype=torch.float32)


def _run(
    backend: Backend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    out, lse = backend.run(q, k, v, mask)
    assert lse is not None  # `refusal` saw to it
    return out, lse
