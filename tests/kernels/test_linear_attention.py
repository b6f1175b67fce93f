"""Linear attention by sums equals its quadratic form; the state depends on nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from longtake.kernels.linear_attention import LinearState, linear_attention
from longtake.kernels.rotary import rotary_table, rotate

FRAMES, BLOCK, TOKENS, HEADS, HEAD_DIM = 8, 2, 6, 3, 16
SIZE = BLOCK * TOKENS


def inputs(scale: float = 1.0) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(3, 2, FRAMES * TOKENS, HEADS, HEAD_DIM) * scale)


def table() -> Tensor:
    return rotary_table(range(FRAMES), 2, 3, HEAD_DIM, torch.device("cpu"))


def quadratic(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All pairs, in float64, with a mask that is causal among blocks."""
    q, k, v = (x.double() for x in (q, k, v))
    turned = (rotate(relu(x).float(), table()).double() for x in (q, k))
    scores = torch.einsum("bqhd,bkhd->bhqk", *turned)
    masses = torch.einsum("bqhd,bkhd->bhqk", relu(q), relu(k))
    block = torch.arange(FRAMES * TOKENS) // SIZE
    seen = block[:, None] >= block
    mixed = torch.einsum("bhqk,bkhd->bqhd", scores * seen, v)
    return mixed / (masses * seen).sum(-1).transpose(1, 2)[..., None]


def test_block_by_block_equals_the_quadratic_form() -> None:
    q, k, v = inputs()
    expected = quadratic(q, k, v)
    state: LinearState | None = None
    for start in range(0, FRAMES * TOKENS, SIZE):
        own = slice(start, start + SIZE)
        block = LinearState.of(k[:, own], v[:, own], table()[own])
        state = block if state is None else state + block
        made = linear_attention(q[:, own], table()[own], state)
        torch.testing.assert_close(made, expected[:, own].float(), atol=1e-5, rtol=1e-5)


def test_the_order_of_keys_does_not_matter() -> None:
    _, k, v = inputs()
    order = torch.randperm(FRAMES * TOKENS)
    state = LinearState.of(k, v, table())
    mixed = LinearState.of(k[:, order], v[:, order], table()[order])
    torch.testing.assert_close(mixed.mixed, state.mixed, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(mixed.mass, state.mass)


def test_the_size_of_the_state_is_that_of_one_matrix_a_head() -> None:
    _, k, v = inputs()
    sizes = {LinearState.of(k[:, :n], v[:, :n], table()[:n]).nbytes for n in (1, 12, 48)}
    assert sizes == {2 * HEADS * HEAD_DIM * (HEAD_DIM + 1) * 4}


def test_only_the_distance_of_positions_counts() -> None:
    q, k, v = inputs()
    device = torch.device("cpu")
    made = []
    for first in (0, 500):
        far = rotary_table(range(first, first + FRAMES), 2, 3, HEAD_DIM, device)
        made.append(linear_attention(q, far, LinearState.of(k, v, far)))
    torch.testing.assert_close(made[0], made[1], atol=1e-4, rtol=1e-4)


def test_keys_without_features_are_not_seen() -> None:
    """The denominator is never negative, and where it is 0 the output is 0 and not NaN."""
    q, k, v = inputs()
    assert (LinearState.of(k, v, table()).mass >= 0).all()
    nothing = LinearState.of(-k.abs(), v, table())
    assert torch.equal(linear_attention(q, table(), nothing), torch.zeros_like(q))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_state_is_float32_whatever_comes_in(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in inputs())
    state = LinearState.of(k, v, table())
    assert state.mixed.dtype == state.mass.dtype == torch.float32
    made = linear_attention(q, table(), state)
    assert made.dtype == dtype
    exact = linear_attention(q.float(), table(), LinearState.of(k.float(), v.float(), table()))
    torch.testing.assert_close(made.float(), exact, atol=0.02, rtol=0.02)
