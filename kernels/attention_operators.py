"""Attention by torch alone: its fused operators, its reference, and a portable fallback.

Every function here takes q (B, Sq, H, D) and k, v (B, Sk, H, D), with Sq and Sk at least 1, and a
boolean mask (B or 1, H or 1, Sq or 1, Sk) or None. It returns out (B, Sq, H, D) in the dtype of
q, and lse (B, H, Sq) in float32, or None from a function that knows no log-sum-exp. Rows without a
key are not made good here but in `longtake.kernels.attention`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CPU_FLASH = "_scaled_dot_product_flash_attention_for_cpu"
CUDA_FLASH = "_scaled_dot_product_flash_attention"
EFFICIENT = "_scaled_dot_product_efficient_attention"
CUDNN = "_scaled_dot_product_cudnn_attention"

SCORES_AT_ONCE = 2**24  # floats, 64 MiB: what one chunk of queries of the fallback may take
BIAS_ALIGNMENT = 16  # elements a row; the memory-efficient kernel reads biases in such steps


@cache
def missing_operator(name: str, *arguments: str) -> str | None:
    """Why this torch cannot run the operator as it is called here; None if it can."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return f"this torch has no operator aten::{name}"
    schema = packet.default._schema
    known = {argument.name for argument in schema.arguments}
    lacking = [name for name in arguments if name not in known]
    if lacking:
        return f"this torch's aten::{name} has no argument {', '.join(lacking)}"
    if len(schema.returns) < 2 or schema.returns[1].name not in ("logsumexp", "log_sumexp"):
        return f"this torch's aten::{name} returns no log-sum-exp"
    return None


def row_sums(lse: Tensor, q: Tensor) -> Tensor:
    """(B, H, Sq) float32 of what kernels give: that, (B, H, Sq, 1), or with Sq rounded up."""
    return lse.reshape(lse.shape[:3])[..., : q.shape[1]].float().contiguous()


def cpu_flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """torch's flash attention for CPUs."""
    bias = None if mask is None else _additive(mask, torch.float32)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        *_heads_first(q, k, v), attn_mask=bias
    )
    return out.transpose(1, 2), row_sums(lse, q)


def cuda_flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """torch's build of flash attention 2; without masks."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention.default(
        *_heads_first(q, k, v)
    )
    return out.transpose(1, 2), row_sums(lse, q)


def aligned_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `mask` is True and -inf elsewhere, in rows that start where the kernel wants them."""
    keys = mask.shape[-1]
    return F.pad(_additive(mask, dtype), (0, -keys % BIAS_ALIGNMENT))[..., :keys]


def efficient(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """torch's memory-efficient attention, the one fused kernel that also takes float32."""
    bias = None
    if mask is not None:
        bias = aligned_bias(mask, q.dtype).expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention.default(
        *_heads_first(q, k, v), bias, compute_log_sumexp=True
    )
    return out.transpose(1, 2), row_sums(lse, q)


def cudnn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """cuDNN's fused attention; without masks."""
    if k.shape[1] == 1:
        return portable(q, k, v, mask)  # cuDNN refuses a single key, whose output is its value
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention.default(
        *_heads_first(q, k, v), None, compute_log_sumexp=True
    )
    return out.transpose(1, 2), row_sums(lse, q)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
    """torch's own choice of a kernel, which keeps the log-sum-exp to itself."""
    out = F.scaled_dot_product_attention(*_heads_first(q, k, v), attn_mask=mask)
    return out.transpose(1, 2), None


def math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
    """torch's unfused attention. Its second result is no log-sum-exp but all probabilities."""
    out, _ = torch.ops.aten._scaled_dot_product_attention_math.default(
        *_heads_first(q, k, v), attn_mask=mask
    )
    return out.transpose(1, 2), None


def portable(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition, in float32 on any device, in chunks of queries that bound its memory."""
    batch, queries, heads, _ = q.shape
    keys = k.shape[1]
    out = q.new_empty(q.shape)
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    scaled = q.transpose(1, 2).float() * q.shape[-1] ** -0.5
    k, v = (x.transpose(1, 2).float().contiguous() for x in (k, v))
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
    step = max(1, SCORES_AT_ONCE // (batch * heads * keys))
    for start in range(0, queries, step):
        rows = slice(start, start + step)
        scores = scaled[:, :, rows] @ k.mT
        if mask is not None:
            scores.masked_fill_(~mask[:, :, rows], -torch.inf)
        highest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(highest).exp_()
        total = weights.sum(-1, keepdim=True)
        out[:, rows] = (weights @ v).div_(total).transpose(1, 2)
        lse[:, :, rows] = (highest + total.log()).squeeze(-1)
    return out, lse


@cache
def missing_flex() -> str | None:
    """Why this torch's FlexAttention cannot be asked for a log-sum-exp; None if it can."""
    from torch.nn.attention import flex_attention

    if not hasattr(flex_attention, "AuxRequest"):
        return "this torch's flex_attention has no AuxRequest to ask for the log-sum-exp"
    return None


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """torch's FlexAttention, not compiled: slow, large, and independent of all others."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    score_mod: Any = None
    if mask is not None:
        seen = mask.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])

        def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.where(seen[b, h, i, j], score, -torch.inf)

    out, aux = flex_attention(
        *_heads_first(q, k, v), score_mod=score_mod, return_aux=AuxRequest(lse=True)
    )
    assert aux.lse is not None  # it was asked for
    return out.transpose(1, 2), row_sums(aux.lse, q)


def _heads_first(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(~mask, -torch.inf)
