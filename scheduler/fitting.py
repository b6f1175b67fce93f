"""Does it fit? One rule for plans on described devices and for workers that are there."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shortage:
    """A memory that is too small for the workers that share it; `needed` and `free` in bytes."""

    ranks: tuple[int, ...]
    needed: int
    free: float

    @property
    def missing(self) -> float:
        """Bytes that are lacking."""
        return self.needed - self.free


def find_shortages(
    needed: Mapping[int, int], memory_of: Mapping[int, Hashable], free: Mapping[Hashable, float]
) -> list[Shortage]:
    """Every memory that is too small.

    Args:
        needed: bytes at the peak of a worker, by rank.
        memory_of: which memory a worker has, by rank; workers on one host's CPU share theirs.
        free: bytes of each memory.
    """
    sharing: dict[Hashable, list[int]] = {}
    for rank in needed:
        sharing.setdefault(memory_of[rank], []).append(rank)
    sums = {memory: sum(needed[rank] for rank in ranks) for memory, ranks in sharing.items()}
    return [
        Shortage(tuple(ranks), sums[memory], free[memory])
        for memory, ranks in sharing.items()
        if sums[memory] > free[memory]
    ]
