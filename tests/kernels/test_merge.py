"""Merging partial attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longtake.kernels.merge import Partial

Part = tuple[Tensor, Tensor]


def part(keys: int, seed: int, amplitude: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scores (2, 3, 5, keys) and values (2, 3, keys, 4), in float64."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 3, 5, keys, generator=generator, dtype=torch.float64) * amplitude
    return scores, torch.randn(2, 3, keys, 4, generator=generator, dtype=torch.float64)


def attend(scores: Tensor, values: Tensor) -> Part:
    """As a backend returns it: out (2, 5, 3, 4) and lse (2, 3, 5) in float32."""
    out = scores.softmax(-1).nan_to_num(0.0) @ values
    return out.transpose(1, 2).float(), scores.logsumexp(-1).float()


def merge(parts: list[Part]) -> Partial:
    merged = Partial.start(*parts[0])
    for other in parts[1:]:
        merged.add(*other)
    return merged


def whole(parts: list[tuple[Tensor, Tensor]]) -> Part:
    scores, values = zip(*parts, strict=True)
    return attend(torch.cat(scores, -1), torch.cat(values, -2))


EMPTY = (torch.zeros(2, 5, 3, 4), torch.full((2, 3, 5), -torch.inf))


@pytest.mark.parametrize(
    ("amplitude", "tolerance"), [(1.0, 1e-6), (8.0, 1e-5), (30.0, 1e-4), (1000.0, 5e-3)]
)
@pytest.mark.parametrize("parts", range(1, 9))
def test_is_the_whole_at_any_size_of_scores(parts: int, amplitude: float, tolerance: float) -> None:
    raw = [part(3 * i + 1, i, amplitude) for i in range(parts)]
    merged, (out, lse) = merge([attend(*p) for p in raw]), whole(raw)
    torch.testing.assert_close(merged.out, out, atol=tolerance, rtol=0)
    torch.testing.assert_close(merged.lse, lse, atol=1e-6 * max(1.0, amplitude), rtol=1e-6)


@pytest.mark.parametrize("place", range(4))
def test_empty_parts_change_nothing(place: int) -> None:
    parts = [attend(*part(4, i)) for i in range(3)]
    merged = merge(parts)
    padded = merge([*parts[:place], EMPTY, EMPTY, *parts[place:]])
    torch.testing.assert_close(padded.out, merged.out, atol=0, rtol=0)
    torch.testing.assert_close(padded.lse, merged.lse, atol=0, rtol=0)


def test_nothing_but_empty_parts_is_empty() -> None:
    merged = merge([EMPTY] * 3)
    assert (merged.result(torch.bfloat16) == 0).all()
    assert (merged.lse == -torch.inf).all()


def test_rows_may_be_empty_one_by_one() -> None:
    raw = [part(4, i) for i in range(3)]
    raw[0][0][:, :, 1] = raw[1][0][:, :, 2] = -torch.inf
    for scores, _ in raw:
        scores[:, :, 3] = -torch.inf
    merged, (out, lse) = merge([attend(*p) for p in raw]), whole(raw)
    torch.testing.assert_close(merged.out, out, atol=1e-6, rtol=0)
    torch.testing.assert_close(merged.lse, lse, atol=1e-6, rtol=0)


def test_a_broken_part_is_not_hidden() -> None:
    out, lse = attend(*part(4, 0))
    lse[0, 0, 0] = torch.nan
    merged = merge([attend(*part(4, 1)), (out, lse)])
    assert merged.out[0, 0, 0].isnan().all()
    assert merged.lse[0, 0, 0].isnan()


def test_order_is_a_matter_of_rounding_only() -> None:
    parts = [attend(*part(4, i)) for i in range(4)]
    torch.testing.assert_close(merge(parts).out, merge(parts[::-1]).out, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_left_as_they_are(dtype: torch.dtype) -> None:
    parts = [(out.to(dtype), lse) for out, lse in (attend(*part(4, i)) for i in range(3))]
    before = [(out.clone(), lse.clone()) for out, lse in parts]
    merge(parts)
    for (out, lse), (out_before, lse_before) in zip(parts, before, strict=True):
        torch.testing.assert_close(out, out_before, atol=0, rtol=0)
        torch.testing.assert_close(lse, lse_before, atol=0, rtol=0)


def test_halves_are_rounded_once() -> None:
    parts = [(out.bfloat16(), lse) for out, lse in (attend(*part(4, i)) for i in range(8))]
    exact = merge([(out.float(), lse) for out, lse in parts])
    torch.testing.assert_close(merge(parts).out, exact.out, atol=0, rtol=0)
    assert merge(parts).result(torch.bfloat16).equal(exact.out.bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_rounded_log_sum_exp_is_refused(dtype: torch.dtype) -> None:
    out, lse = attend(*part(4, 0))
    with pytest.raises(TypeError, match="kept in float32, got"):
        Partial.start(out, lse.to(dtype))
    with pytest.raises(TypeError, match="kept in float32, got"):
        Partial.start(out, lse).add(out, lse.to(dtype))


def test_a_rounded_log_sum_exp_would_be_seen() -> None:
    """The tolerances above are no cover for the mistake that others make."""
    raw = [part(4, i) for i in range(3)]
    rounded = [(out, lse.bfloat16().float()) for out, lse in (attend(*p) for p in raw)]
    assert (merge(rounded).out - whole(raw)[0]).abs().max() > 100 * 1e-6
