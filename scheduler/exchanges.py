"""What the workers of a lane send to each other during a task, to the byte.

The sizes are those that `parallel` computes from the same shares, so nothing of this is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Literal

from longtake.scheduler.cluster import Cluster
from longtake.scheduler.degrees import AXES, Degrees, Place, shares
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.plan import EVALUATIONS
from longtake.scheduler.request import Request
from longtake.scheduler.share import Share
from longtake.scheduler.task import Kind, Task

FLOAT32 = 4  # bytes; latents are kept so
COORDINATES = tuple(field.name for field in fields(Place))


@dataclass(frozen=True)
class Exchange:
    """What one worker sends to the others of a group during a task.

    Attributes:
        ranks: of the group, this worker's own included.
        bytes: that this worker sends to all of them together, in all layers.
        overlappable: it travels while this worker computes; otherwise it is waited for at once.
        messages: how many such exchanges follow one another; each has to wait for a latency.
        name: as transfers are called in traces.
        around: it goes to the next of the group alone, and from the last one back to the first.
        senders: how many send to the same worker at once, which takes them in turn.
    """

    ranks: tuple[int, ...]
    bytes: int
    overlappable: bool
    messages: int
    name: str
    around: bool = False
    senders: int = 1

    def seconds(self, cluster: Cluster, rank: int, lane: Sequence[int]) -> float:
        """How long it takes this worker when all groups of some ranks do the same at once."""
        if not self.bytes or len(self.ranks) < 2:
            return 0.0
        here, sent = cluster.node_of(rank), self.bytes * self.senders
        at_home = [other for other in self.ranks if cluster.node_of(other) == here]
        neighbours = sum(cluster.node_of(other) == here for other in lane)
        inside = cluster.nodes[here].link
        if len(at_home) == len(self.ranks):
            return inside.seconds(sent, self.messages, neighbours)
        network = cluster.network
        assert network is not None
        if self.around:  # only the last of a node sends to another one
            senders = max(1, neighbours // len(at_home))
            return network.seconds(sent, self.messages, senders)
        outward = sent * (len(self.ranks) - len(at_home)) / (len(self.ranks) - 1)
        across = network.seconds(outward, self.messages, neighbours)
        within = inside.seconds(sent - outward, self.messages, neighbours)
        return max(across, within)


class Exchanges:
    """Of all tasks of a request, by rank."""

    def __init__(
        self,
        spec: ModelSpec,
        request: Request,
        degrees: Degrees,
        itemsize: int,
        hides: Literal["nothing", "ring", "all"] = "ring",
    ) -> None:
        """`itemsize` is of the transformer's dtype, in bytes; `hides` is of `Software`."""
        self._hides = hides
        self._spec, self._degrees, self._itemsize = spec, degrees, itemsize
        self._prompts = 2 if request.guidance > 1 else 1
        self._pixels = (request.height // spec.spatial_stride) * (
            request.width // spec.spatial_stride
        )
        rows, columns = spec.grid(request.height, request.width)
        self._groups: dict[tuple[int, tuple[str, ...]], tuple[int, ...]] = {}
        self._tokens = [len(span) for span in shares(rows * columns, degrees.sequence)]

    def of(self, task: Task, rank: int, share: Share) -> list[Exchange]:
        """What a worker of the task's lane exchanges; nothing that is empty."""
        found: list[Exchange] = []
        if task.kind is Kind.ENCODE:
            found.append(self._broadcast_text(rank))
        elif task.kind is Kind.RESTORE:
            found += self._broadcast_latents(task, rank)
        elif task.kind is Kind.ADVANCE:
            found += self._flow(task, rank, share, share.branches)
        elif task.kind in EVALUATIONS:
            found += [self._to_heads(task, rank, share), self._clip_keys(task, rank, share)]
            found += [self._ring(task, rank, share), self._to_tokens(task, rank, share)]
            if task.kind is Kind.DENOISE and task.stage == self._degrees.stages - 1:
                found.append(self._gather(task, rank, share))
                if self._degrees.stages == 1:
                    found += self._flow(task, rank, share, share.batch(task))
        return [exchange for exchange in found if exchange.bytes]

    def group(self, rank: int, *axes: str) -> tuple[int, ...]:
        """The ranks that differ from this one along some axes alone, in order."""
        key = (rank, axes)
        if key not in self._groups:
            own, degrees = self._degrees.place(rank), self._degrees
            ranges = [
                range(getattr(degrees, axis)) if axis in axes else (getattr(own, coordinate),)
                for axis, coordinate in zip(AXES, COORDINATES, strict=True)
            ]
            self._groups[key] = tuple(degrees.rank(Place(*at)) for at in product(*ranges))
        return self._groups[key]

    def hidden(self, task: Task, share: Share) -> int:
        """Bytes of a worker's tokens between two stages."""
        tokens = share.batch(task) * share.frames(task) * share.own
        return tokens * self._spec.width * self._itemsize

    def flow(self, task: Task, share: Share) -> int:
        """Bytes of the flow that a worker of the last stage sends to the first."""
        return share.batch(task) * self._latents(share.frames(task)) * self._itemsize

    def _latents(self, frames: int) -> int:
        return frames * self._spec.latent_channels * self._pixels

    def _broadcast_text(self, rank: int) -> Exchange:
        text = self._prompts * self._spec.text_tokens * self._spec.text.width * self._itemsize
        world = tuple(range(self._degrees.world))
        sent = text * (len(world) - 1) if rank == 0 else 0
        return Exchange(world, sent, False, 1, "world broadcast")

    def _broadcast_latents(self, task: Task, rank: int) -> list[Exchange]:
        """Rank 0 reads what an earlier run left."""
        lane = self.group(rank, "cfg", "clip", "ring", "ulysses")
        parts = {part.block: part.frames for part in task.parts if part.last}
        frames = sum(map(len, parts.values())) if task.parts else len(task.frames)
        sent = self._latents(frames) * FLOAT32 * (len(lane) - 1) if rank == 0 else 0
        return [Exchange(lane, sent, False, max(1, len(parts)), "lane broadcast")]

    def _per_head(self, task: Task, share: Share) -> int:
        """Bytes of one frame's token in a worker's heads, all of its branches."""
        return share.batch(task) * share.heads * self._spec.head_dim * self._itemsize

    def _to_heads(self, task: Task, rank: int, share: Share) -> Exchange:
        others = self._degrees.ulysses - 1
        tokens = 3 * share.frames(task) * share.own
        sent = share.layers * others * tokens * self._per_head(task, share)
        return self._ulysses(rank, share, sent)

    def _to_tokens(self, task: Task, rank: int, share: Share) -> Exchange:
        tokens = share.frames(task) * (share.segment - share.own)
        sent = share.layers * tokens * self._per_head(task, share)
        return self._ulysses(rank, share, sent)

    def _ulysses(self, rank: int, share: Share, sent: int) -> Exchange:
        ranks, hidden = self.group(rank, "ulysses"), self._hides == "all"
        return Exchange(ranks, sent, hidden, share.layers, "ulysses all_to_all")

    def _ring(self, task: Task, rank: int, share: Share) -> Exchange:
        """Every call of attention passes the keys of all but one segment on."""
        size, index = self._degrees.ring, share.place.ring
        ulysses = self._degrees.ulysses
        segments = [sum(self._tokens[i * ulysses : (i + 1) * ulysses]) for i in range(size)]
        passed = sum(segments[(index - hop) % size] for hop in range(size - 1))
        calls = share.looks(task)
        keys = sum(frames for _, frames in calls)
        sent = share.layers * 2 * keys * passed * self._per_head(task, share)
        hops = share.layers * len(calls) * (size - 1)
        ranks, hidden = self.group(rank, "ring"), self._hides != "nothing"
        return Exchange(ranks, sent, hidden, hops, "ring exchange", around=True)

    def _clip_keys(self, task: Task, rank: int, share: Share) -> Exchange:
        ranks, sent = self.group(rank, "clip"), 0
        if task.parts:
            traffic, own = share.traffic(task), share.place.clip
            others = (clip for clip in range(self._degrees.clip) if clip != own)
            frames = sum(traffic.frames(own, clip) for clip in others)
            sent = share.layers * 2 * frames * share.segment * self._per_head(task, share)
        return Exchange(ranks, sent, self._hides != "nothing", share.layers, "clip all_to_all")

    def _gather(self, task: Task, rank: int, share: Share) -> Exchange:
        """The flow in patches, from everybody's tokens."""
        patch = self._spec.patch**2 * self._spec.latent_channels * self._itemsize
        tokens = share.batch(task) * share.frames(task) * share.own
        sent = (self._degrees.sequence - 1) * tokens * patch
        ranks = self.group(rank, "ring", "ulysses")
        return Exchange(ranks, sent, False, 1, "sequence all_gather")

    def _flow(self, task: Task, rank: int, share: Share, branches: int) -> list[Exchange]:
        """Both branches of guidance meet, then all clips."""
        one = self._latents(share.frames(task)) * self._itemsize
        cfg, clip = self.group(rank, "cfg"), self.group(rank, "clip")
        meet = Exchange(cfg, (len(cfg) - 1) * branches * one, False, 1, "cfg all_gather")
        join = Exchange(clip, (len(clip) - 1) * one, False, 1, "clip all_gather")
        return [meet, join] if task.parts else [meet]
