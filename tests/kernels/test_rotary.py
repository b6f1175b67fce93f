"""Rotary positions: Wan's own, and good for any position."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from longtake.kernels.rotary import axis_dims, rotary_table, rotate

HEAD_DIM = 24
ROWS, COLUMNS = 2, 3
CPU = torch.device("cpu")


def table(frames: Sequence[int], head_dim: int = HEAD_DIM) -> Tensor:
    return rotary_table(frames, ROWS, COLUMNS, head_dim, CPU)


def random(frames: int, head_dim: int = HEAD_DIM, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, frames * ROWS * COLUMNS, 2, head_dim, generator=generator)


def test_wan_turns_44_channels_with_time() -> None:
    assert axis_dims(128) == (44, 42, 42)


@pytest.mark.parametrize("head_dim", [12, 16, 32, 128])
def test_equals_the_table_of_diffusers(head_dim: int) -> None:
    rope = WanRotaryPosEmbed(head_dim, (1, 2, 2), 1024)
    cos, sin = rope(torch.zeros(1, 4, 5, 2 * ROWS, 2 * COLUMNS))
    x = random(5, head_dim)
    pairs = x.unflatten(-1, (-1, 2))
    crossed = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    expected = x * cos + crossed * sin
    torch.testing.assert_close(rotate(x, table(range(5), head_dim)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("offset", [1, 1_000, 1_023, 100_000])
def test_08_scores_depend_on_distances_alone(offset: int) -> None:
    near, far = [0, 1, 5], [offset, offset + 1, offset + 5]
    q, k = random(3), random(3, seed=1)
    scores = [
        torch.einsum("bqhd,bkhd->bhqk", rotate(q, table(at)), rotate(k, table(at)))
        for at in (near, far)
    ]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=0)


def test_08_turning_back_restores() -> None:
    x = random(2)
    there = rotate(x, table([7, 300]))
    assert (there - x).abs().max() > 0.1
    back = torch.stack([table([7, 300])[..., 0], -table([7, 300])[..., 1]], dim=-1)
    torch.testing.assert_close(rotate(there, back), x, atol=1e-6, rtol=0)


def test_08_time_turns_the_channels_of_time_only() -> None:
    x = random(1)
    time = axis_dims(HEAD_DIM)[0]
    now, later = rotate(x, table([0])), rotate(x, table([9]))
    assert torch.equal(now[..., time:], later[..., time:])
    assert (now[..., :time] - later[..., :time]).abs().max() > 0.1


def test_frames_are_turned_by_their_own_position() -> None:
    x = random(3)
    n = ROWS * COLUMNS
    parts = [rotate(x[:, i * n : (i + 1) * n], table([at])) for i, at in enumerate([8, 2, 40])]
    assert torch.equal(rotate(x, table([8, 2, 40])), torch.cat(parts, dim=1))


def test_low_precision_is_turned_in_float32() -> None:
    x = random(3).bfloat16()
    assert torch.equal(
        rotate(x, table([8, 2, 40])), rotate(x.float(), table([8, 2, 40])).bfloat16()
    )


def test_a_part_of_a_larger_tensor_can_be_turned() -> None:
    x = random(4)
    n = 3 * ROWS * COLUMNS
    assert torch.equal(rotate(x[:, :n], table(range(3))), rotate(x, table(range(4)))[:, :n])
