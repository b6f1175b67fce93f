"""Three-axis rotary positions of Wan: time, height and width share one attention head.

The angles are made for any integer position, in float64 on the host, so positions are not bound to
the length of a table; `scheduler.retention` decides which positions a model may be given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

THETA = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's channels turn with time, height and width, in this order."""
    plane = 2 * (head_dim // 6)
    return head_dim - 2 * plane, plane, plane


def _angles(positions: Tensor, dim: int) -> Tensor:
    rates = THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return positions.to(torch.float64)[:, None] * rates


def rotary_table(
    frames: Sequence[int], height: int, width: int, head_dim: int, device: torch.device
) -> Tensor:
    """Rotations for every token of the given latent frames.

    Args:
        frames: the temporal position of each latent frame.
        height, width: patches in a frame.

    Returns:
        (tokens, head_dim // 2, 2) float32 on `device`: cosine and sine for each pair of channels,
        tokens ordered by frame, row, column.
    """
    time_dim, row_dim, column_dim = axis_dims(head_dim)
    n = len(frames)
    time = _angles(torch.tensor(list(frames)), time_dim)
    row = _angles(torch.arange(height), row_dim)
    column = _angles(torch.arange(width), column_dim)
    angles = torch.cat(
        [
            time[:, None, None, :].expand(n, height, width, -1),
            row[None, :, None, :].expand(n, height, width, -1),
            column[None, None, :, :].expand(n, height, width, -1),
        ],
        dim=-1,
    ).reshape(n * height * width, head_dim // 2)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1).to(torch.float32)
    return table.to(device, non_blocking=True)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring channel pairs of `x`, (B, S, H, D), by `table`, (S, D // 2, 2), in
    float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turned = pairs * torch.view_as_complex(table)[:, None]
    return torch.view_as_real(turned).flatten(-2).type_as(x)
