"""Layers for stages on devices that differ in speed and memory."""

from __future__ import annotations

from collections.abc import Sequence


def balance(
    layers: int,
    pace: Sequence[float],
    room: Sequence[int],
    beside: Sequence[float] | None = None,
) -> tuple[int, ...] | None:
    """How many layers each stage takes, so that the slowest one is through soonest.

    Each further layer goes to the stage that is through with it first, which no other order beats:
    a stage's time grows with its layers alone.

    Args:
        layers: of the model.
        pace: seconds that a layer takes on each stage.
        room: layers that fit each stage's memory.
        beside: seconds that each stage takes besides its layers; None: nothing.

    Returns:
        None where they don't fit all stages together, or a stage has no room for one.
    """
    if min(room) < 1 or sum(room) < layers or layers < len(pace):
        return None
    own, beside = [1] * len(pace), [0.0] * len(pace) if beside is None else beside

    def with_one_more(stage: int) -> tuple[float, int]:
        return (own[stage] + 1) * pace[stage] + beside[stage], stage

    for _ in range(layers - len(pace)):
        free = [stage for stage in range(len(pace)) if own[stage] < room[stage]]
        own[min(free, key=with_one_more)] += 1
    return tuple(own)
