"""Attention by packages that need not be there: flash-attention 2 and 3, xFormers, SageAttention.

The functions keep to the form that `longtake.kernels.attention_operators` describes, without masks.
A package is imported when it is first asked for, since the import alone takes seconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from torch import Tensor

from longtake.kernels.attention_operators import row_sums

FLASH_2 = ("flash_attn", "flash_attn_func")
FLASH_3 = ("flash_attn_interface", "flash_attn_func")
XFORMERS = ("xformers.ops.fmha", "memory_efficient_attention_partial")
SAGE = ("sageattention", "sageattn")


@cache
def missing_function(module: str, name: str, argument: str) -> str | None:
    """Why a package's function cannot be called as it is here; None if it can."""
    try:
        function = getattr(import_module(module), name, None)
    except ImportError as error:
        return f"the package cannot be imported ({str(error).partition(chr(10))[0]})"
    if function is None:
        return f"this version of {module} has no {name}"
    if argument not in inspect.signature(function).parameters:
        return f"this version of {module}.{name} has no argument {argument}"
    return None


@cache
def _function(module: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def flash_2(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The package flash-attn."""
    out, lse, _ = _function(*FLASH_2)(q, k, v, return_attn_probs=True)
    return out, row_sums(lse, q)


def flash_3(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Flash attention 3, for Hopper."""
    out, lse, *_ = _function(*FLASH_3)(q, k, v, return_attn_probs=True)
    return out, row_sums(lse, q)


def xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """xFormers' attention over a part of the keys."""
    out, lse = _function(*XFORMERS)(q, k, v)
    return out.to(q.dtype), row_sums(lse, q)


def sage(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
    """SageAttention, which rounds queries and keys to 8 bits."""
    return _function(*SAGE)(q, k, v, tensor_layout="NHD"), None
