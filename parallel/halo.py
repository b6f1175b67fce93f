"""Images shared out by bands of rows: border rows for convolutions, all rows for attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.parallel.group import Group
from longtake.scheduler.degrees import shares
from longtake.scheduler.task import Span


@dataclass(frozen=True)
class Bands:
    """Which rows each worker of a group holds: bands in order, that may differ in height.

    With fewer rows than workers, the last workers hold none.
    """

    group: Group
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, rows: int, group: Group) -> Bands:
        """Share `rows` out evenly."""
        return cls(group, tuple(shares(rows, group.size)))

    @property
    def own(self) -> Span:
        """The rows that this worker holds."""
        return self.spans[self.group.index]

    def with_halo(self, x: Tensor) -> Tensor:
        """The band with its neighbours' border rows above and below; zeros beyond the image.

        Only workers that hold rows call this.

        Args:
            x: (..., rows, columns), of any multiple of the band's rows.

        Returns:
            (..., 1 + rows + 1, columns)
        """
        index = self.group.index
        above = index - 1 if index else None
        below = index + 1 if index + 1 < len(self.spans) and len(self.spans[index + 1]) else None
        return exchange_rows(x, above, below, self.group)

    def gather(self, x: Tensor, dim: int, per_row: int = 1) -> Tensor:
        """Every worker's tensors in order, joined along `dim`; all workers of the group call this.

        Args:
            x: `per_row` entries along `dim` for each row of the band.
            dim: where the bands are joined.
            per_row: entries along `dim` per row.
        """
        return self.group.all_gather(x, [len(span) * per_row for span in self.spans], dim)

    def collect(self, x: Tensor, per_row: int = 1) -> Tensor | None:
        """As `gather` of (..., rows, columns), but only the first worker gets the result."""
        first = self.group.index == 0
        rows = [len(span) * per_row for span in self.spans]
        shapes = [(*x.shape[:-2], count, x.shape[-1]) if first else (0,) for count in rows]
        chunks = [x, *[x.new_empty(0)] * (self.group.size - 1)]  # what is empty is not sent
        received = self.group.all_to_all(chunks, shapes)
        return torch.cat(received, dim=-2) if first else None


def exchange_rows(x: Tensor, above: int | None, below: int | None, group: Group) -> Tensor:
    """Join a band with a row of each neighbour; zeros where there is none.

    Both rows are on their way at once, in both directions.

    Args:
        x: (..., rows, columns), one row at least.
        above: the worker of the group that holds the rows above, None at the image's border.
        below: the same, below.
        group: the workers that hold the image.

    Returns:
        (..., 1 + rows + 1, columns)
    """
    top, bottom = x[..., :1, :], x[..., -1:, :]
    chunks, shapes = [x.new_empty(0)] * group.size, [torch.Size([0])] * group.size
    for row, peer in ((top, above), (bottom, below)):
        if peer is not None:
            chunks[peer], shapes[peer] = row, row.shape
    received = group.all_to_all(chunks, shapes)  # what is empty is not sent
    rows = (torch.zeros_like(top) if peer is None else received[peer] for peer in (above, below))
    return torch.cat([next(rows), x, next(rows)], dim=-2)
