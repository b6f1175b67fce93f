"""Attention on one device."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention.

    Args:
        q: (B, Sq, H, D). k, v: (B, Sk, H, D).
        mask: boolean, broadcastable to (B, H, Sq, Sk), True where a query may look; None: all.

    Returns:
        (B, Sq, H, D) in the dtype of q.
    """
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)
