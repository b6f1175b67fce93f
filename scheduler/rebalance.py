"""How many layers each stage should have, by how long its launches really take.

As StreamDiffusionV2 moves layers (arXiv 2511.07399): time beside the layers, such as the VAE's,
counts as its stage's own. It asks once, after warm-up; here it may be asked again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtake.scheduler.balance import balance

GAIN = 0.1  # share of the slowest stage's time that a move must save: it makes all stages wait once


@dataclass(frozen=True)
class StagePace:
    """What a launch takes of a stage, in seconds.

    Attributes:
        layers: that it has.
        own: in its layers.
        beside: in whatever else it does meanwhile and can't do at the same time.
        room: how many layers more its memory takes.
    """

    layers: int
    own: float
    beside: float
    room: int

    def seconds(self, layers: int) -> float:
        """What a launch would take of it with so many layers."""
        return self.own * layers / self.layers + self.beside


def balanced(stages: Sequence[StagePace], gain: float = GAIN) -> tuple[int, ...] | None:
    """The layers of each stage with which the slowest is fastest; None if that gains too little.

    Every stage keeps at least one, and gets no more than it has room for.
    """
    counts = balance(
        sum(stage.layers for stage in stages),
        [stage.own / stage.layers for stage in stages],
        [stage.layers + stage.room for stage in stages],
        [stage.beside for stage in stages],
    )
    assert counts is not None  # those that are there fit
    slowest = max(stage.seconds(stage.layers) for stage in stages)
    new = max(stage.seconds(n) for stage, n in zip(stages, counts, strict=True))
    return counts if new < (1 - gain) * slowest else None
