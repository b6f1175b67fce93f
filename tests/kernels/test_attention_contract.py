"""Every backend that runs here keeps the contract, against the definition in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.kernels import attention_operators as operators
from longtake.kernels.attention import attention_with_lse
from longtake.kernels.attention_backends import Backend, backends, choose, refusal
from longtake.kernels.merge import Partial
from longtake.scheduler.errors import UserError

CPU = torch.device("cpu")
HERE = [b for b in backends() if refusal(b, CPU, torch.float32, 64, True) is None]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

every_backend = pytest.mark.parametrize("backend", HERE, ids=lambda backend: backend.name)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def random(length: int, head_dim: int, dtype: torch.dtype, seed: int, heads: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, length, heads, head_dim, generator=generator).to(dtype)


def inputs(queries: int, keys: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(random(n, head_dim, dtype, i) for i, n in enumerate((queries, keys, keys)))


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


def test_those_that_should_run_here_do() -> None:
    assert [backend.name for backend in HERE] == ["cpu-flash", "portable", "flex"]


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (37, 53), (5, 1301), (65, 1), (1, 33)])
@every_dtype
@every_backend
def test_keeps_the_contract_at_any_length(
    backend: Backend, dtype: torch.dtype, queries: int, keys: int
) -> None:
    q, k, v = inputs(queries, keys, 64, dtype)
    check(*attention_with_lse(q, k, v, backend), q, defined(q, k, v))


@pytest.mark.parametrize("head_dim", [16, 32, 64, 96, 128])
@every_dtype
@every_backend
def test_keeps_the_contract_at_any_head_size(
    backend: Backend, dtype: torch.dtype, head_dim: int
) -> None:
    q, k, v = inputs(19, 45, head_dim, dtype)
    check(*attention_with_lse(q, k, v, backend), q, defined(q, k, v))


@every_backend
def test_takes_views_into_a_cache(backend: Backend) -> None:
    """Neither tokens nor heads of a shard are contiguous."""
    q, k, v = (x[:, 3:20, 1:] for x in inputs(23, 23, 32, torch.float32))
    check(*attention_with_lse(q, k, v, backend), q, defined(q, k, v))


@every_backend
def test_key_heads_may_serve_several_query_heads(backend: Backend) -> None:
    q = random(7, 16, torch.float32, 0, heads=6)
    k, v = (random(9, 16, torch.float32, seed, heads=2) for seed in (1, 2))
    check(
        *attention_with_lse(q, k, v, backend),
        q,
        defined(q, *(x[:, :, [0] * 3 + [1] * 3] for x in (k, v))),
    )
    with pytest.raises(ValueError, match="2 key heads cannot serve 5 query heads"):
        attention_with_lse(q[:, :, :5], k, v, backend)


def masks() -> Iterator[Tensor]:
    """Of every shape that broadcasts to (2, 3, 6, 700); most with rows that see nothing."""
    generator = torch.Generator().manual_seed(9)
    full = torch.rand(2, 3, 6, 700, generator=generator) < 0.3
    full[:, :, 2] = False
    full[1, 2, 4] = False
    full[:, :, 5, :650] = False  # whole tiles of a fused kernel, then some keys
    yield full
    yield full[0, 0]
    yield full[:, :1, :1]
    yield full[0, 0, :, :1]
    yield full[0, 0, 0]


@pytest.mark.parametrize("mask", list(masks()), ids=lambda mask: "x".join(map(str, mask.shape)))
@every_dtype
@every_backend
def test_masks_and_rows_that_see_nothing(
    backend: Backend, dtype: torch.dtype, mask: Tensor
) -> None:
    q, k, v = inputs(6, 700, 32, dtype)
    out, lse = attention_with_lse(q, k, v, backend, mask)
    check(out, lse, q, defined(q, k, v, mask))
    blind = ~mask.expand(2, 3, 6, 700).any(-1)
    assert (out.transpose(1, 2)[blind] == 0).all()
    assert (lse[blind] == -torch.inf).all()


def fail(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    raise AssertionError("no kernel may see an empty set: some end the process")


@pytest.mark.parametrize(("queries", "keys"), [(5, 0), (0, 5), (0, 0)])
def test_empty_sets_reach_no_kernel(queries: int, keys: int) -> None:
    q, k, v = inputs(queries, keys, 16, torch.bfloat16)
    never = Backend("never", lambda device, dtype, head_dim: None, fail, takes_mask=True)
    for mask in (None, torch.ones(queries, keys, dtype=torch.bool)):
        out, lse = attention_with_lse(q, k, v, never, mask)
        assert (out.shape, out.dtype) == (q.shape, q.dtype)
        assert (lse.shape, lse.dtype) == ((2, 3, queries), torch.float32)
        assert (out == 0).all()
        assert (lse == -torch.inf).all()


def test_an_empty_shard_does_not_hide_a_wrong_backend() -> None:
    """Else one rank would go on where all others stop."""
    q, k, v = inputs(5, 0, 16, torch.float32)
    with pytest.raises(UserError, match="'math' cannot be used: it returns no log-sum-exp"):
        attention_with_lse(q, k, v, named("math"))


@every_dtype
@every_backend
@settings(max_examples=6)
@given(lengths=st.lists(st.integers(0, 9) | st.just(70), min_size=1, max_size=8).filter(any))
def test_merged_parts_are_the_whole(
    backend: Backend, dtype: torch.dtype, lengths: list[int]
) -> None:
    q, k, v = inputs(5, sum(lengths), 16, dtype)
    parts = [
        attention_with_lse(q, *kv, backend)
        for kv in zip(k.split(lengths, 1), v.split(lengths, 1), strict=True)
    ]
    merged = Partial.start(*parts[0])
    for part in parts[1:]:
        merged.add(*part)
    check(merged.result(dtype), merged.lse, q, defined(q, k, v))


def test_the_fallback_bounds_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of 3, 3 and 1 queries."""
    q, k, v = inputs(7, 11, 16, torch.float32)
    mask = torch.rand(7, 11, generator=torch.Generator().manual_seed(3)) < 0.5
    monkeypatch.setattr(operators, "SCORES_AT_ONCE", 2 * 3 * 11 * 3 + 1)
    check(*attention_with_lse(q, k, v, named("portable"), mask), q, defined(q, k, v, mask))


def named(name: str) -> Backend:
    return next(backend for backend in backends() if backend.name == name)


@pytest.mark.parametrize("name", ["sdpa", "math"])
def test_backends_without_lse_still_attend(name: str) -> None:
    q, k, v = inputs(5, 9, 16, torch.float32)
    out, lse = choose(CPU, q.dtype, 16, need_lse=False, name=name).run(q, k, v, None)
    torch.testing.assert_close(out.double(), defined(q, k, v)[0], atol=1e-6, rtol=0)
    assert lse is None


def test_the_fused_operator_is_preferred() -> None:
    assert choose(CPU, torch.bfloat16, 128, need_lse=True).name == "cpu-flash"
    assert choose(CPU, torch.bfloat16, 128, need_lse=True, need_mask=True).name == "cpu-flash"
    assert choose(torch.device("meta"), torch.float32, 128, need_lse=True).name == "portable"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("math", "it returns no log-sum-exp to merge parts by: its second result is the matrix"),
        ("sdpa", "it returns no log-sum-exp to merge parts by: torch keeps it to itself"),
        ("sage", "it returns no log-sum-exp to merge parts by: each part is shifted by the mean"),
        ("cudnn", "it runs on CUDA, not on cpu"),
        ("flash-attention-3", "it runs on CUDA, not on cpu"),
        ("flashy", "there is none of that name"),
    ],
)
def test_a_backend_that_cannot_serve_a_ring_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        choose(CPU, torch.float32, 64, need_lse=True, name=name)
    message = str(caught.value)
    assert message.startswith(f"attention backend {name!r} cannot be used: {reason}")
    assert message.endswith("legal here: cpu-flash, portable, flex")
    assert "\n" not in message


def test_a_backend_without_masks_is_refused_one() -> None:
    maskless = Backend("maskless", lambda device, dtype, head_dim: None, fail)
    q, k, v = inputs(5, 9, 16, torch.float32)
    with pytest.raises(UserError, match="'maskless' cannot be used: it takes no mask"):
        attention_with_lse(q, k, v, maskless, torch.ones(5, 9, dtype=torch.bool))


def test_what_no_backend_takes_is_refused() -> None:
    with pytest.raises(UserError, match="takes float64; legal: float32, bfloat16, float16"):
        choose(CPU, torch.float64, 64, need_lse=True)
