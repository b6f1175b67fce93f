"""Who runs which task."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.scheduler.task import Edge, Kind, Payload, Task


@dataclass(frozen=True)
class Lane:
    """A worker, or a group of workers, that runs tasks together, in order."""

    name: str
    kinds: frozenset[Kind]


@dataclass(frozen=True)
class Plan:
    """Lanes, and what travels between them."""

    lanes: tuple[Lane, ...]
    label: str = "exact"

    def lane_of(self, kind: Kind) -> str:
        """The name of the lane that runs tasks of a kind."""
        return next(lane.name for lane in self.lanes if kind in lane.kinds)

    def outgoing(self, task: Task) -> tuple[Edge, ...]:
        """What a task gives to other lanes: a finished block's latents go to its decode."""
        return self._latents(task.block) if task.kind is Kind.DENOISE and task.last else ()

    def incoming(self, task: Task) -> tuple[Edge, ...]:
        """What a task needs from other lanes."""
        return self._latents(task.block) if task.kind is Kind.DECODE else ()

    def _latents(self, block: int) -> tuple[Edge, ...]:
        source, target = self.lane_of(Kind.DENOISE), self.lane_of(Kind.DECODE)
        return (Edge(Payload.LATENT, block, source, target),) if source != target else ()


def overlapped() -> Plan:
    """One lane for the transformer, one for the VAE, so that decoding hides behind denoising."""
    return Plan(
        (
            Lane("denoise", frozenset({Kind.ENCODE, Kind.DENOISE, Kind.COMMIT, Kind.RECACHE})),
            Lane("decode", frozenset({Kind.DECODE})),
        )
    )
