"""Layers for stages on devices that differ in speed and memory."""

from __future__ import annotations

from collections.abc import Sequence


def balance(layers: int, pace: Sequence[float], room: Sequence[int]) -> tuple[int, ...] | None:
    """How many layers each stage takes, so that the slowest one is through soonest.

    Each further layer goes to the stage that is through with it first, which no other order beats:
    a stage's time grows with its layers alone.

    Args:
        layers: of the model.
        pace: seconds that a layer takes on each stage.
        room: layers that fit each stage's memory.

    Returns:
        None where they don't fit all stages together, or a stage has no room for one.
    """
    if min(room) < 1 or sum(room) < layers or layers < len(pace):
        return None
    own = [1] * len(pace)
    for _ in range(layers - len(pace)):
        free = [stage for stage in range(len(pace)) if own[stage] < room[stage]]
        own[min(free, key=lambda stage: ((own[stage] + 1) * pace[stage], stage))] += 1
    return tuple(own)
