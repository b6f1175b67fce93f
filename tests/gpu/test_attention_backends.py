"""On an NVIDIA GPU: every backend that it can run keeps the contract, against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from longtake.kernels.attention import attention_with_lse
from longtake.kernels.attention_backends import Backend, backends, choose, refusal
from longtake.kernels.merge import Partial

DEVICE = torch.device("cuda")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
MERGEABLE = [
    backend for backend in backends() if backend.returns_lse and backend.name != "cpu-flash"
]

every_backend = pytest.mark.parametrize("backend", MERGEABLE, ids=lambda backend: backend.name)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def inputs(
    queries: int, keys: int, head_dim: int, dtype: torch.dtype, batch: int = 2, heads: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(queries + keys)
    q, k, v = (
        torch.randn(batch, n, heads, head_dim, generator=generator, device=DEVICE).to(dtype)
        for n in (queries, keys, keys)
    )
    return q, k, v


def skip_unless_capable(
    backend: Backend, dtype: torch.dtype, head_dim: int, need_mask: bool = False
) -> None:
    reason = refusal(backend, DEVICE, dtype, head_dim, True, need_mask)
    if reason is not None:
        pytest.skip(f"{backend.name}: {reason}")


def defined(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(out, lse) in float64."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.double()), scores.logsumexp(-1)


def check(out: Tensor, lse: Tensor, q: Tensor, expected: tuple[Tensor, Tensor]) -> None:
    batch, queries, heads, _ = q.shape
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert (lse.shape, lse.dtype) == ((batch, heads, queries), torch.float32)
    assert lse.is_contiguous()
    torch.testing.assert_close(out.double(), expected[0], atol=TOLERANCES[q.dtype], rtol=0)
    exact = 1e-5 if q.dtype == torch.float32 else 1e-4
    torch.testing.assert_close(lse.double(), expected[1], atol=exact, rtol=0)


@pytest.mark.parametrize("head_dim", [16, 32, 64, 96, 128])
@every_dtype
@every_backend
def test_keeps_the_contract(backend: Backend, dtype: torch.dtype, head_dim: int) -> None:
    skip_unless_capable(backend, dtype, head_dim)
    for queries, keys in ((1, 1), (65, 1), (1, 33), (37, 53), (5, 1301), (128, 256)):
        q, k, v = inputs(queries, keys, head_dim, dtype)
        check(*attention_with_lse(q, k, v, backend), q, defined(q, k, v))


@every_dtype
@every_backend
def test_takes_views_into_a_cache(backend: Backend, dtype: torch.dtype) -> None:
    skip_unless_capable(backend, dtype, 64)
    q, k, v = (x[:, 3:40, 1:] for x in inputs(71, 71, 64, dtype))
    check(*attention_with_lse(q, k, v, backend), q, defined(q, k, v))


@every_dtype
@every_backend
def test_masks_and_rows_that_see_nothing(backend: Backend, dtype: torch.dtype) -> None:
    skip_unless_capable(backend, dtype, 64, need_mask=True)
    q, k, v = inputs(37, 701, 64, dtype)
    generator = torch.Generator(DEVICE).manual_seed(9)
    mask = torch.rand(2, 3, 37, 701, generator=generator, device=DEVICE) < 0.3
    mask[:, :, 2] = False
    mask[:, :, 5, :650] = False
    for narrower in (mask, mask[0, 0], mask[:, :1, :1], mask[0, 0, :, :1]):
        out, lse = attention_with_lse(q, k, v, backend, narrower)
        check(out, lse, q, defined(q, k, v, narrower))


@every_dtype
@every_backend
def test_empty_sets(backend: Backend, dtype: torch.dtype) -> None:
    skip_unless_capable(backend, dtype, 64)
    for queries, keys in ((5, 0), (0, 5)):
        out, lse = attention_with_lse(*inputs(queries, keys, 64, dtype), backend)
        assert (out.shape, lse.shape) == ((2, queries, 3, 64), (2, 3, queries))
        assert (out == 0).all()
        assert (lse == -torch.inf).all()


@pytest.mark.parametrize("lengths", [[300, 401], [1, 0, 33, 500, 167], [64, 63, 1, 0, 0, 9, 2, 5]])
@every_dtype
@every_backend
def test_merged_parts_are_the_whole(
    backend: Backend, dtype: torch.dtype, lengths: list[int]
) -> None:
    skip_unless_capable(backend, dtype, 128)
    q, k, v = inputs(37, sum(lengths), 128, dtype)
    keys, values = k.split(lengths, 1), v.split(lengths, 1)
    merged = Partial.start(*attention_with_lse(q, keys[0], values[0], backend))
    for key, value in zip(keys[1:], values[1:], strict=True):
        merged.add(*attention_with_lse(q, key, value, backend))
    check(merged.result(dtype), merged.lse, q, defined(q, k, v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_backend
def test_a_ring_of_four_over_a_whole_window(backend: Backend, dtype: torch.dtype) -> None:
    """A block of 4,680 tokens over 32,760, as Wan 2.1 1.3B has them at 480x832."""
    skip_unless_capable(backend, dtype, 128)
    if backend.name == "flex":
        pytest.skip("flex: it would hold all scores at once")
    q, k, v = inputs(4680, 32760, 128, dtype, batch=1, heads=12)
    out, lse = attention_with_lse(q, k, v, backend)
    parts = list(zip(k.split(9001, 1), v.split(9001, 1), strict=True))
    merged = Partial.start(*attention_with_lse(q, *parts[0], backend))
    for part in parts[1:]:
        merged.add(*attention_with_lse(q, *part, backend))
    torch.testing.assert_close(merged.out, out.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(merged.lse, lse, atol=1e-4, rtol=0)


@every_backend
def test_host_never_waits_for_the_device(backend: Backend) -> None:
    skip_unless_capable(backend, torch.bfloat16, 128)
    if backend.name == "flex":
        pytest.skip("flex: an oracle for tests, whose speed does not matter")
    q, k, v = inputs(37, 53, 128, torch.bfloat16)
    attention_with_lse(q, k, v, backend)  # a first call may build plans
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        part = attention_with_lse(q, k, v, backend)
        merged = Partial.start(*part)
        merged.add(*part)
        merged.result(torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("head_dim", [16, 32, 64, 96, 128])
@pytest.mark.parametrize("need_mask", [False, True])
@every_dtype
def test_a_fused_kernel_is_chosen(dtype: torch.dtype, need_mask: bool, head_dim: int) -> None:
    if torch.cuda.get_device_capability(DEVICE) < (8, 0):
        pytest.skip("kernels for halves need a GPU of compute capability 8.0")
    chosen = choose(DEVICE, dtype, head_dim, need_lse=True, need_mask=need_mask)
    assert chosen.name not in ("portable", "flex")
