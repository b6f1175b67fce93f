"""What tasks cost on a described cluster, from a model's shape alone.

A forward takes the longest of: what it takes to launch its kernels; and of its matrix products, its
attention and its elementwise kernels, one after another, each as fast as FLOPs or bytes allow.
"""

from __future__ import annotations

from collections.abc import Hashable

from longtake.scheduler import flops
from longtake.scheduler.cluster import Cluster, Device
from longtake.scheduler.decode_costs import DecodeCosts
from longtake.scheduler.decode_degrees import BY_RANK_0, DecodeDegrees
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.exchanges import Exchange, Exchanges
from longtake.scheduler.footprint import Footprint, footprint
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.plan import EVALUATIONS
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Strategy
from longtake.scheduler.share import Share
from longtake.scheduler.software import DTYPES, LONGTAKE, Software
from longtake.scheduler.task import Edge, Kind, Payload, Task

__all__ = ["Costs", "Exchange"]

# How often a token's channels are read or written to turn tokens into heads and back: queries,
# keys, values and results, each packed before it is sent and unpacked after.
PACKED = 4 * 4


class Costs:
    """Costs of the tasks of one request; ranks are those of `Degrees`, and of the cluster."""

    def __init__(
        self,
        spec: ModelSpec,
        request: Request,
        degrees: Degrees,
        cluster: Cluster,
        itemsize: int,
        strategy: Strategy,
        software: Software = LONGTAKE,
        decode: DecodeDegrees = BY_RANK_0,
    ) -> None:
        """`itemsize` is of the transformer's dtype, in bytes: 1, 2 or 4; `decode` says who decodes,
        which `software` that is not Longtake may know better."""
        self._spec, self._request, self._degrees = spec, request, degrees
        self._cluster, self._itemsize, self._strategy = cluster, itemsize, strategy
        self._software, self._dtype = software, DTYPES[itemsize]
        self.vae = DecodeCosts(spec, request, cluster, decode, software, degrees.world)
        self._linear_dtype = software.linear or self._dtype
        self._exchanges = Exchanges(spec, request, degrees, itemsize, software.hides)
        self._shares: dict[int, Share] = {}

    def seconds(self, part: Task, rank: int) -> float:
        """Compute of one worker's share of a task part (of `Plan.parts`); 0.0 if it has none.

        Raises:
            UserError: a device of the cluster has no peak for the dtype, or there are too few.
        """
        if part.kind is Kind.DECODE:
            return self.vae.seconds(part.frames, rank)
        share = self.share(rank)
        if part.stage != share.place.stage:
            return 0.0
        if part.kind is Kind.ENCODE:
            return self._encode(rank, share)
        if part.kind in EVALUATIONS:
            return self._evaluate(part, share, self._cluster.devices[rank])
        return 0.0

    def exchanges(self, part: Task, rank: int) -> list[Exchange]:
        """What this worker exchanges within its lane during a part, or with others that decode;
        nothing that is empty."""
        if part.kind is Kind.DECODE:
            return self.vae.exchanges(part.frames, rank)
        share = self.share(rank)
        if part.stage != share.place.stage:
            return []
        return self._exchanges.of(part, rank, share)

    def edge_bytes(self, edge: Edge, part: Task, rank: int = 0) -> int:
        """What this worker sends along an edge of `Plan.outgoing(part)`.

        A finished block stays within rank 0's process.
        """
        share = self.share(rank)
        if edge.payload is Payload.HIDDEN:
            return self._exchanges.hidden(part, share)
        if edge.payload is Payload.FLOW:
            return self._exchanges.flow(part, share)
        return 0

    def memory(self, rank: int) -> int:
        """Bytes that a worker holds at its peak."""
        return self.footprint(rank).total

    def footprint(self, rank: int) -> Footprint:
        """What these bytes are."""
        spec, request, degrees = self._spec, self._request, self._degrees
        itemsize, strategy = self._itemsize, self._strategy
        cpu = self._cluster.nodes[self._cluster.node_of(rank)].shares_memory
        return footprint(spec, request, degrees, itemsize, strategy, rank, self.decode, cpu)

    @property
    def decode(self) -> DecodeDegrees:
        """Who decodes."""
        return self.vae.degrees

    def decode_kind(self, rank: int) -> Hashable:
        """The same for workers that decode as much, in as long, as each other."""
        return self.vae.kind(rank)

    def share(self, rank: int) -> Share:
        """What a worker has of every task."""
        if rank not in self._shares:
            self._shares[rank] = Share.of(rank, self._degrees, self._spec, self._request)
        return self._shares[rank]

    def _encode(self, rank: int, share: Share) -> float:
        """Rank 0 reads the prompts, every worker makes its layers' keys of them."""
        device, spec = self._cluster.devices[rank], self._spec
        rate = self._linear_rate(device, spec.text_tokens * spec.width)
        seconds = share.branches * flops.text_flops(spec, share.layers) / rate
        if rank == 0:
            prompts = 2 if self._request.guidance > 1 else 1
            read = spec.text.parameters * self._itemsize / self._bandwidth(device)
            seconds += prompts * max(spec.text.flops(spec.text_tokens) / rate, read)
        return seconds

    def _evaluate(self, part: Task, share: Share, device: Device) -> float:
        spec, batch = self._spec, share.batch(part)
        frames = share.frames(part)
        if not frames:
            return 0.0
        text = spec.text_tokens if spec.joint_text else 0
        tokens = frames * share.own + text // self._degrees.sequence
        linear = batch * share.layers * flops.layer_flops(spec, tokens)
        if part.stage == 0:
            linear += batch * flops.embed_flops(spec, frames * share.own)
        if part.stage == self._degrees.stages - 1:
            linear += batch * flops.head_flops(spec, frames * share.own)
        rate = self._linear_rate(device, batch * tokens * spec.width)
        weights = share.layers * flops.layer_weights(spec) * self._itemsize
        bandwidth = self._bandwidth(device)
        moved = self._software.layer_bytes(spec, self._itemsize)
        if self._degrees.ulysses > 1:
            moved += PACKED * self._itemsize
        moved *= share.layers * batch * tokens * spec.width
        small = max(linear / rate, weights / bandwidth) + moved / bandwidth
        attention = share.layers * self._attend(part, share, device, tokens)
        floor = share.layers * device.launch_floor * self._software.floor
        if self._software.synchronises:
            return device.task_floor + max(floor, small) + attention
        return device.task_floor + max(floor, small + attention)

    def _attend(self, part: Task, share: Share, device: Device, tokens: int) -> float:
        """Attention of one layer: to the video, and to the text."""
        spec, batch = self._spec, share.batch(part)
        text = spec.text_tokens if spec.joint_text else 0
        seconds = 0.0
        for query_frames, key_frames in share.looks(part):
            queries = query_frames * share.segment + text // self._degrees.ring
            keys = key_frames * share.frame + text
            work = batch * flops.attention_flops(spec, queries, keys, share.heads)
            rate = self._attention_rate(device, batch * queries * share.heads)
            read = 2 * batch * keys * share.heads * spec.head_dim * self._itemsize
            seconds += max(work / rate, read / self._bandwidth(device)) if work else 0.0
        if not spec.joint_text:
            work = batch * flops.attention_flops(spec, tokens, spec.text_tokens, spec.heads)
            rate = self._attention_rate(device, batch * tokens * spec.heads)
            seconds += work / rate if work else 0.0
        return seconds

    def _bandwidth(self, device: Device) -> float:
        return device.bytes_per_second * device.efficiency.memory

    def _linear_rate(self, device: Device, size: int) -> float:
        """FLOP per second of products with so many results of a model's width."""
        found = device.efficiency
        share = found.linear * size / (size + found.linear_half) if size else 1.0
        return device.peak_of(self._linear_dtype) * share * self._software.on(device.name)

    def _attention_rate(self, device: Device, size: int) -> float:
        """FLOP per second of attention with so many queries, counted in all heads."""
        found = device.efficiency
        best = found.attention.get(self._software.attention, found.attention["flash-2"])
        share = best * size / (size + found.attention_half) if size else 1.0
        dtype = "bfloat16" if self._dtype == "float8" else self._dtype
        return device.peak_of(dtype) * share * self._software.on(device.name)
