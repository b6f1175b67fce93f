"""Calls of operators and packages that cannot run here, as far as shapes and signatures go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longtake.kernels import attention_operators as operators
from longtake.kernels.attention_backends import Run
from longtake.kernels.attention_packages import missing_function


def on_meta(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize("queries", [1, 37, 64])
@pytest.mark.parametrize("run", [operators.cuda_flash, operators.efficient, operators.cudnn])
def test_results_have_the_shapes_of_the_contract(run: Run, queries: int) -> None:
    q, k = on_meta(2, queries, 3, 128), on_meta(2, 53, 3, 128)
    out, lse = run(q, k, k, None)
    assert lse is not None
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert (lse.shape, lse.dtype) == ((2, 3, queries), torch.float32)
    assert lse.is_contiguous()


def test_a_single_key_needs_no_cudnn() -> None:
    """cuDNN refuses it, and parts of one key do occur."""
    q, k = torch.randn(2, 5, 3, 16), torch.randn(2, 1, 3, 16)
    out, lse = operators.cudnn(q, k, k, None)
    torch.testing.assert_close(out, k.expand_as(q))
    torch.testing.assert_close(lse, torch.einsum("bqhd,bkhd->bhq", q, k) / 4)


def test_padded_rows_are_cut_off() -> None:
    q = torch.zeros(2, 37, 3, 16)
    padded = torch.arange(2 * 3 * 64, dtype=torch.float32).view(2, 3, 64)
    torch.testing.assert_close(operators.row_sums(padded, q), padded[..., :37])
    torch.testing.assert_close(operators.row_sums(padded[..., None], q), padded[..., :37])


@pytest.mark.parametrize("keys", [1, 16, 53])
def test_biases_are_aligned(keys: int) -> None:
    """The memory-efficient kernel wants rows that start at multiples of 16 elements."""
    mask = torch.rand(2, 1, 7, keys, generator=torch.Generator().manual_seed(0)) < 0.5
    bias = operators.aligned_bias(mask, torch.bfloat16)
    assert (bias.shape, bias.dtype, bias.stride(-1)) == (mask.shape, torch.bfloat16, 1)
    assert all(bias.stride(i) % 16 == 0 for i in range(3))
    assert (bias == 0).equal(mask)
    assert (bias == -torch.inf).equal(~mask)


def test_a_mask_is_broadcast_to_all_heads() -> None:
    q, k = on_meta(2, 7, 3, 128), on_meta(2, 53, 3, 128)
    mask = torch.empty(1, 1, 7, 53, dtype=torch.bool, device="meta")
    out, lse = operators.efficient(q, k, k, mask)
    assert (out.shape, lse.shape) == (q.shape, (2, 3, 7))


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (lambda: operators.missing_operator(operators.CPU_FLASH, "attn_mask"), None),
        (lambda: operators.missing_operator(operators.CUDA_FLASH), None),
        (lambda: operators.missing_operator(operators.EFFICIENT, "attn_bias"), None),
        (lambda: operators.missing_operator(operators.CUDNN, "compute_log_sumexp"), None),
        (lambda: operators.missing_operator("_no_such_thing"), "no operator aten::_no_such_thing"),
        (
            lambda: operators.missing_operator(operators.CUDA_FLASH, "attn_mask"),
            "has no argument attn_mask",
        ),
        (
            lambda: operators.missing_operator("_scaled_dot_product_attention_math"),
            "returns no log-sum-exp",
        ),
        (lambda: missing_function("json", "dumps", "indent"), None),
        (lambda: missing_function("json", "dumps", "lse"), "json.dumps has no argument lse"),
        (lambda: missing_function("json", "attend", "lse"), "json has no attend"),
        (lambda: missing_function("no_such_package", "f", "x"), "cannot be imported (No module"),
    ],
)
def test_capability_is_probed(missing: Callable[[], str | None], reason: str | None) -> None:
    found = missing()
    assert found is None if reason is None else reason in (found or "")
