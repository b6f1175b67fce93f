"""Costs that are simple enough to be reckoned by hand, for tests of simulator and planner."""

from __future__ import annotations

from dataclasses import dataclass, replace

from longtake.scheduler.cluster import Cluster, Device, Efficiency, Link, Node
from longtake.scheduler.decode_degrees import BY_RANK_0, DecodeDegrees
from longtake.scheduler.degrees import AXES, Degrees, Place
from longtake.scheduler.exchanges import Exchange
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.plan import EVALUATIONS, Plan
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Strategy
from longtake.scheduler.simulator import Job
from longtake.scheduler.simulator_efforts import ClusterEfforts
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.buffer import Buffer
from longtake.scheduler.strategies.cascade import Cascade
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.strategies.dual import Dual
from longtake.scheduler.strategies.rolling import Rolling
from longtake.scheduler.task import Edge, Kind, Payload, Task

SPEC = ModelSpec(
    layers=8,
    heads=4,
    head_dim=8,
    ffn_dim=64,
    latent_channels=4,
    patch=2,
    rotary_rows=1024,
    block_frames=3,
)
WINDOW = Retention(12, 3, Positions.RELATIVE)
PLAIN = replace(WINDOW, recache=False)
STRATEGIES: dict[str, Strategy] = {
    "bidirectional": Bidirectional(),
    "buffer": Buffer(4),
    "cascade": Cascade(PLAIN, 3),
    "causal": Causal(WINDOW),
    "dual": Dual(4, 2),
    "rolling": Rolling(PLAIN, 3),
}


def device(
    name: str = "fast", speed: float = 1e9, memory: float = 2**34, shares: float = 1.0
) -> Device:
    """A device with so many FLOP per second; `shares` with decoding."""
    return Device(
        name=name,
        memory=memory,
        peak={"float32": speed},
        bytes_per_second=1e12,
        efficiency=Efficiency({}, 1.0, 1.0),
        launch_floor=0.0,
        convolution_floor=0.0,
        watts=100.0,
        idle_watts=10.0,
        decode_shares=shares,
    )


def cluster(
    *counts: int,
    bandwidth: float = 1e9,
    latency: float = 1e-5,
    of: tuple[Device, ...] = (),
) -> Cluster:
    """Nodes of so many devices each."""
    link = Link(10 * bandwidth, latency / 10)
    kinds = of or (device(),) * len(counts)
    nodes = tuple(Node(kind, count, link) for kind, count in zip(kinds, counts, strict=True))
    return Cluster("test", nodes, Link(bandwidth, latency, total=bandwidth))


def request(seconds: float = 12.0, guidance: float = 1.0, *at: float) -> Request:
    """A small video; `at`: when prompts change."""
    cues = (Cue(0.0, "one"), *(Cue(second, f"from {second}") for second in at))
    return Request(cues, seconds, 64, 64, 8, guidance=guidance)


@dataclass(frozen=True)
class Costs:
    """Work is frames x what they see x layers; every exchange is a part of the hidden states."""

    spec: ModelSpec
    request: Request
    degrees: Degrees
    cluster: Cluster
    strategy: Strategy
    floor: float = 1e-4
    decode: DecodeDegrees = BY_RANK_0

    def seconds(self, part: Task, rank: int) -> float:
        speed = self.cluster.devices[rank].peak_of("float32")
        if part.kind is Kind.DECODE:
            return 4e6 * len(part.frames) / speed / self.decode.world
        if part.kind not in EVALUATIONS:
            return 1e-5
        place = self.degrees.place(rank)
        layers = len(self.degrees.layers(place.stage, self.spec))
        seen = sum(len(span) for span in part.context)
        seen += sum(len(s.frames) for p in part.parts for s in p.sees)
        work = 1e6 * layers * part.length * (8 + seen) * self._branches(part)
        shares = self.degrees.sequence * self.degrees.clip
        return self.floor * layers + work / shares / speed

    def exchanges(self, part: Task, rank: int) -> list[Exchange]:
        if part.kind is Kind.DECODE:
            stage = self.decode.stage(rank)
            sent = 1000 * len(part.frames) * (self.decode.world - 1)
            band = self.decode.bands_of(rank)
            return [Exchange(band, sent, False, len(part.frames), f"decoder {stage}")]
        if part.kind not in EVALUATIONS:
            return []
        place = self.degrees.place(rank)
        layers = len(self.degrees.layers(place.stage, self.spec))
        size = self._tokens(part) * layers
        found = []
        for axis in ("ulysses", "ring"):
            group = self._group(place, axis)
            if len(group) > 1:
                sent = size * (len(group) - 1) // len(group)
                found.append(
                    Exchange(group, sent, axis == "ring", layers, axis, around=axis == "ring")
                )
        return found

    def decode_kind(self, rank: int) -> int:
        return rank

    def edge_bytes(self, edge: Edge, part: Task, rank: int = 0) -> int:
        return 0 if edge.payload is Payload.LATENT else self._tokens(part)

    def memory(self, rank: int) -> int:
        layers = len(self.degrees.layers(self.degrees.place(rank).stage, self.spec))
        cached = self.strategy.cached_frames(self.request, self.spec)
        frames = cached * layers + self.strategy.longest_launch(self.request, self.spec)
        return layers * 2**20 + 2**16 * frames // self.degrees.sequence

    def _tokens(self, part: Task) -> int:
        share = self.degrees.sequence * self.degrees.clip
        return 4096 * part.length * self._branches(part) // share

    def _branches(self, part: Task) -> int:
        branches = 2 if self.request.guidance > 1 else 1
        return branches // self.degrees.cfg if part.branch is None else 1

    def _group(self, place: Place, axis: str) -> tuple[int, ...]:
        assert axis in AXES
        size = getattr(self.degrees, axis)
        return tuple(self.degrees.rank(replace(place, **{axis: at})) for at in range(size))


def planned(
    job: Job,
    degrees: Degrees,
    on: Cluster,
    shares: float = 1.0,
    decode: DecodeDegrees = BY_RANK_0,
) -> tuple[Plan, ClusterEfforts]:
    """A plan and what it takes; `shares` as of `Device.decode_shares`."""
    nodes = (replace(n, device=replace(n.device, decode_shares=shares)) for n in on.nodes)
    on = replace(on, nodes=tuple(nodes))
    plan = Plan(degrees, 2 if job.request.guidance > 1 else 1)
    costs = Costs(job.spec, job.request, degrees, on, job.strategy, decode=decode)
    return plan, ClusterEfforts(plan, costs, on)
