"""What the lanes of a plan take to decode together: costs of workers as efforts of lanes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import Protocol

from longtake.scheduler.cluster import Cluster
from longtake.scheduler.decode_degrees import DecodeDegrees
from longtake.scheduler.efforts import Effort
from longtake.scheduler.exchanges import Exchange
from longtake.scheduler.task import Task


class DecodingCosts(Protocol):
    """What is asked of `scheduler.costs.Costs`."""

    @property
    def decode(self) -> DecodeDegrees:
        """Who decodes."""
        ...

    def decode_kind(self, rank: int) -> Hashable:
        """The same for workers that decode as much, in as long, as each other."""
        ...

    def seconds(self, part: Task, rank: int) -> float:
        """Compute of one worker's share of a part."""
        ...

    def exchanges(self, part: Task, rank: int) -> list[Exchange]:
        """What it exchanges with others of its lane, or with others that decode."""
        ...


class DecodeEfforts:
    """Efforts of pieces of a video.

    All that decode keep step: the slowest worker of each stage of the decoder sets its pace, and
    no piece is begun before the one before it has passed all stages.
    """

    def __init__(
        self, costs: DecodingCosts, cluster: Cluster, lanes: Mapping[str, tuple[int, ...]]
    ) -> None:
        """`lanes`: the ranks of every lane of the transformer."""
        self._costs, self._cluster = costs, cluster
        everyone = range(costs.decode.world)
        self.lanes = {
            name: tuple(rank for rank in ranks if rank < costs.decode.world)
            for name, ranks in lanes.items()
            if ranks[0] < costs.decode.world
        }
        self._kinds = [costs.decode_kind(rank) for rank in everyone]

    def of(self, piece: Task) -> dict[str, Effort]:
        """What every lane that decodes has to do of a DECODE; all of them are through together."""
        found = {kind: self._effort(piece, rank) for kind, rank in self._first_of_kind.items()}
        paces = [0.0] * self._costs.decode.stages
        ways = list(paces)
        for kind, rank in self._first_of_kind.items():
            stage, effort = self._costs.decode.stage(rank), found[kind]
            paces[stage] = max(paces[stage], effort.compute + effort.exchange)
            ways[stage] = max(ways[stage], effort.beside)
        frames = len(piece.frames)
        slowest = max(*paces, *ways)
        seconds = ((frames - 1) * slowest + sum(paces) + sum(ways)) / frames
        efforts = {}
        for name, ranks in self.lanes.items():
            own = [found[self._kinds[rank]] for rank in ranks]
            compute, sent = max(e.compute for e in own), sum(e.bytes for e in own)
            efforts[name] = Effort(compute, seconds - compute, bytes=sent)
        return efforts

    @cached_property
    def _first_of_kind(self) -> dict[Hashable, int]:
        first: dict[Hashable, int] = {}
        for rank, kind in enumerate(self._kinds):
            first.setdefault(kind, rank)
        return first

    def _effort(self, piece: Task, rank: int) -> Effort:
        """Of one worker by itself; `beside` travels to the next stage of the decoder."""
        exchange = beside = 0.0
        sent, everyone = 0, range(self._costs.decode.world)
        for each in self._costs.exchanges(piece, rank):
            seconds = each.seconds(self._cluster, rank, everyone)
            if each.overlappable:
                beside += seconds
            else:
                exchange += seconds
            sent += each.bytes
        return Effort(self._costs.seconds(piece, rank), exchange, beside, sent)
