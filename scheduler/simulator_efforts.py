"""What parts of tasks take on a described cluster: costs of workers as efforts of lanes.

All workers of a lane do a part together, so it takes as long as the slowest of them. Which workers
can differ is known beforehand: those on other devices, with other shares of a launch's parts, or
whose groups reach over other nodes; one of each such kind is asked.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from itertools import chain
from typing import Protocol

from longtake.scheduler.cluster import Cluster
from longtake.scheduler.decode_efforts import DecodeEfforts, DecodingCosts
from longtake.scheduler.degrees import Degrees, Place
from longtake.scheduler.efforts import Effort, Travel
from longtake.scheduler.fitting import Shortage, find_shortages
from longtake.scheduler.plan import EVALUATIONS, Plan
from longtake.scheduler.task import Edge, Kind, Part, Seen, Task

LAUNCHES = 256  # whose shapes are remembered


class WorkerCosts(DecodingCosts, Protocol):
    """What is asked of `scheduler.costs.Costs`."""

    def edge_bytes(self, edge: Edge, part: Task, rank: int = 0) -> int:
        """What it sends along an edge."""
        ...

    def memory(self, rank: int) -> int:
        """Bytes at its peak."""
        ...


class ClusterEfforts:
    """Efforts of a plan whose ranks are the first devices of a cluster."""

    def __init__(
        self,
        plan: Plan,
        costs: WorkerCosts,
        cluster: Cluster,
        count_all: bool = True,
        most_kinds: int | None = None,
    ) -> None:
        """`count_all` adds up the bytes of every worker; otherwise those of one of each kind stand
        for all of its kind. `most_kinds` asks workers of so many kinds at most, which makes efforts
        too small rather than too large."""
        self._plan, self._costs, self._cluster = plan, costs, cluster
        self._count_all, self._most_kinds = count_all, most_kinds
        self._efforts: dict[Hashable, Effort] = {}
        self._decodes: dict[Hashable, dict[str, Effort]] = {}
        self._travels: dict[Hashable, Travel] = {}
        self._shapes = Shapes()

    @cached_property
    def workers(self) -> dict[str, tuple[int, ...]]:
        """The ranks of every lane of the transformer."""
        stages = enumerate(ranks_of_stages(self._plan.degrees))
        return {self._plan.lane_of_stage(stage): ranks for stage, ranks in stages}

    @cached_property
    def largest(self) -> tuple[int, ...]:
        """Ranks among which is the one that holds most: shares that come first are the larger."""
        degrees = self._plan.degrees
        alike = is_regular(degrees, self._cluster) and degrees.stage_layers is None
        stages = min(degrees.stages, 2) if alike else degrees.stages
        return tuple(degrees.rank(Place(stage=stage)) for stage in range(stages))

    @cached_property
    def peak_memory(self) -> int:
        """Bytes of the worker that holds most."""
        return max(map(self.memory_of, self.largest))

    def memory_of(self, rank: int) -> int:
        """Bytes that a worker holds at its peak."""
        return self._costs.memory(rank)

    @cached_property
    def memory(self) -> tuple[int, ...]:
        """Bytes that each worker holds at its peak.

        Unless all are counted, those with the same layers and parts as another one hold as much as
        the first of them, which has the largest share of the tokens.
        """
        asked: dict[Hashable, int] = {}
        found = []
        for rank, place in enumerate(self._plan.degrees.places()):
            tokens = (place.ring, place.ulysses) if self._count_all else ()
            key = (rank == 0, place.stage, place.clip, tokens, self._costs.decode_kind(rank))
            if key not in asked:
                asked[key] = self._costs.memory(rank)
            found.append(asked[key])
        return tuple(found)

    @property
    def shortages(self) -> list[Shortage]:
        """Devices, or memories that several share, which are too small."""
        cluster = self._cluster
        together = any(node.shares_memory for node in cluster.nodes)
        ranks = range(self._plan.degrees.world) if together else self.largest
        nodes = {rank: cluster.nodes[cluster.node_of(rank)] for rank in ranks}
        memory_of: dict[int, Hashable] = {
            rank: (cluster.node_of(rank), 0 if node.shares_memory else rank)
            for rank, node in nodes.items()
        }
        needed = {rank: self.memory_of(rank) for rank in ranks}
        free = {memory_of[rank]: node.device.memory for rank, node in nodes.items()}
        return find_shortages(needed, memory_of, free)

    @property
    def contention(self) -> tuple[float, float]:
        """How much rank 0's other work and decoding slow each other down."""
        return self._cluster.devices[0].contention

    @cached_property
    def watts(self) -> tuple[tuple[float, float], ...]:
        """What each worker's device takes at work and idle."""
        used = self._cluster.devices[: self._plan.degrees.world]
        return tuple((device.watts, device.idle_watts) for device in used)

    def effort(self, part: Task) -> Effort:
        """Of a part on its lane."""
        key = (part.kind, part.stage, part.branch is None, self._shapes.of(part))
        found = self._efforts.get(key)
        if found is None:
            found = self._efforts[key] = self._effort(part)
        return found

    def decode(self, piece: Task) -> dict[str, Effort]:
        """Of a DECODE, on every lane that decodes beside what else it does."""
        key = self._shapes.of(piece)
        if key not in self._decodes:
            self._decodes[key] = self._decoding.of(piece)
        return self._decodes[key]

    @property
    def decoders(self) -> dict[str, tuple[int, ...]]:
        """The ranks of every lane that decode."""
        return self._decoding.lanes

    @property
    def decoder_stages(self) -> int:
        """Runs of the decoder's layers, which work on as many pieces."""
        return self._costs.decode.stages

    @cached_property
    def _decoding(self) -> DecodeEfforts:
        return DecodeEfforts(self._costs, self._cluster, self.workers)

    def travel(self, edge: Edge, part: Task) -> Travel:
        """Of an edge that this part sends."""
        key = (edge.payload, edge.source, edge.branch is None, self._shapes.of(part))
        found = self._travels.get(key)
        if found is None:
            found = self._travels[key] = self._travel(edge, part)
        return found

    def _effort(self, part: Task) -> Effort:
        lane = self.workers[self._plan.lane_of(part)]
        kinds = self._kinds[self._plan.lane_of(part)]
        compute = exchange = beside = crowded = 0.0
        sent = 0
        for rank, number in kinds.items():
            compute = max(compute, self._costs.seconds(part, rank))
            waited = hidden = 0.0
            device, exchanges = self._cluster.devices[rank], self._costs.exchanges(part, rank)
            messages = sum(each.messages for each in exchanges)
            crowded = max(crowded, messages * device.crowding)
            waited += messages * device.exchange_floor
            for each in exchanges:
                seconds = each.seconds(self._cluster, rank, lane)
                if each.overlappable:
                    hidden += seconds
                else:
                    waited += seconds
                sent += each.bytes * (number if part.kind in EVALUATIONS else 1)
            exchange, beside = max(exchange, waited), max(beside, hidden)
        if self._count_all:
            sent = sum(e.bytes for rank in lane for e in self._costs.exchanges(part, rank))
        return Effort(compute, exchange, beside, sent, crowded)

    def _travel(self, edge: Edge, part: Task) -> Travel:
        cluster, degrees = self._cluster, self._plan.degrees
        pairs = list(zip(self.workers[edge.source], self.workers[edge.target], strict=True))
        sizes = [self._costs.edge_bytes(edge, part, source) for source, _ in pairs]
        crossing: dict[int, int] = {}
        for (source, target), size in zip(pairs, sizes, strict=True):
            if size and cluster.node_of(source) != cluster.node_of(target):
                node = cluster.node_of(source)
                crossing[node] = crossing.get(node, 0) + 1
        latency = busy = 0.0
        ports = set()
        for (source, target), size in zip(pairs, sizes, strict=True):
            if not size:
                continue
            link, node = cluster.link(source, target), cluster.node_of(source)
            far = node != cluster.node_of(target)
            senders = crossing[node] if far else degrees.world // degrees.stages
            latency = max(latency, link.latency)
            busy = max(busy, link.seconds(size, 1, senders) - link.latency)
            if far:
                ports |= {f"out of node {node}", f"into node {cluster.node_of(target)}"}
            elif link.total is not None:
                ports.add(f"inside node {node}")
            else:
                ports |= {f"out of {edge.source}", f"into {edge.target}"}
        return Travel(latency, busy, tuple(sorted(ports)), sum(sizes))

    @cached_property
    def _kinds(self) -> dict[str, dict[int, int]]:
        """One worker of each kind in each lane, and how many there are of it."""
        degrees = self._plan.degrees
        if not is_regular(degrees, self._cluster):
            return self._irregular_kinds()
        every = range(degrees.clip)
        if self._most_kinds is not None and degrees.clip > self._most_kinds:
            every = range(0, degrees.clip, -(-degrees.clip // self._most_kinds))
        return {
            name: {ranks[clip * degrees.sequence]: degrees.cfg * degrees.sequence for clip in every}
            for name, ranks in self.workers.items()
        }

    def _irregular_kinds(self) -> dict[str, dict[int, int]]:
        places = list(self._plan.degrees.places())
        found: dict[str, dict[int, int]] = {}
        for name, ranks in self.workers.items():
            kinds: dict[Hashable, list[int]] = {}
            for rank in ranks:
                key = rank == 0, places[rank].clip, self._surroundings(rank, places[rank])
                kinds.setdefault(key, []).append(rank)
            found[name] = {members[0]: len(members) for members in kinds.values()}
        return found

    def _surroundings(self, rank: int, place: Place) -> Hashable:
        """The worker's device, and for each of its groups how many nodes it reaches over."""
        degrees, cluster = self._plan.degrees, self._cluster
        groups = []
        for axis, size in (
            ("cfg", degrees.cfg),
            ("clip", degrees.clip),
            ("ring", degrees.ring),
            ("ulysses", degrees.ulysses),
        ):
            coordinates = vars(place)
            others = [degrees.rank(Place(**{**coordinates, axis: at})) for at in range(size)]
            groups.append(len({cluster.node_of(other) for other in others}))
        return (cluster.devices[rank].name, *groups)


class Shapes:
    """What tells apart parts that take different efforts: their shape, not where they stand."""

    def __init__(self) -> None:
        # The parts of one launch are one object, whoever does them, and lanes are not far apart.
        self._launches: dict[int, tuple[tuple[Part, ...], Hashable]] = {}

    def of(self, part: Task) -> Hashable:
        """The same for parts that take the same, on the same lane."""
        if part.parts:
            known = self._launches.get(id(part.parts))
            if known is None:
                if len(self._launches) >= LAUNCHES:
                    del self._launches[next(iter(self._launches))]
                known = part.parts, _shape_of(part.parts)
                self._launches[id(part.parts)] = known  # holds the object, so its id stays its own
            return known[1]
        seen = 0
        for span in part.context:
            seen += span.stop - span.start
        starts = part.kind is Kind.DECODE and part.frames.start == 0
        return (part.frames.stop - part.frames.start, seen, part.selects, starts)


def _shape_of(parts: tuple[Part, ...]) -> Hashable:
    start = min(part.frames.start for part in parts)
    return tuple(
        (
            part.block - parts[0].block,
            part.frames.start - start,
            part.frames.stop - start,
            part.step is None,
            part.cue - parts[0].cue,
            part.idle,
            part.within,
            part.sees_itself,
            part.writes is None,
            part.keeps and len(part.keeps),
            tuple(_seen(seen, start) for seen in part.sees),
        )
        for part in parts
    )


def _seen(seen: Seen, start: int) -> Hashable:
    if seen.row is not None and not seen.by_distance:
        return len(seen.frames)
    first, stop = seen.frames.start - start, seen.frames.stop - start
    return first, stop, seen.row is None, seen.within, seen.beyond


def ranks_of_stages(degrees: Degrees) -> list[tuple[int, ...]]:
    """The workers of every stage, in order of rank."""
    size = degrees.clip * degrees.sequence  # ranks of a stage that are neighbours
    found = []
    for stage in range(degrees.stages):
        firsts = [(cfg * degrees.stages + stage) * size for cfg in range(degrees.cfg)]
        found.append(tuple(chain.from_iterable(range(first, first + size) for first in firsts)))
    return found


def is_regular(degrees: Degrees, cluster: Cluster) -> bool:
    """Whether groups along an axis reach over as many nodes everywhere, on devices of one kind."""
    used = cluster.devices[: degrees.world]
    size = cluster.nodes[0].count
    if any(node.device != used[0] for node in cluster.nodes[: -(-len(used) // size)]):
        return False
    if any(node.count != size or node.link != cluster.nodes[0].link for node in cluster.nodes):
        return False
    inner = 1
    for degree in (degrees.ulysses, degrees.ring, degrees.clip, degrees.stages, degrees.cfg):
        inner *= degree
        if inner % size and size % inner:
            return False
    return True
