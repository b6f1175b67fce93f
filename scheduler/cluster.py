"""Machines that a plan could run on: nodes of devices, and the links between them.

Sheets of vendors and measured kernels, not promises: what a software makes of them is in
`scheduler.software`. `configs/cluster/` has descriptions, `docs/simulator.md` says where their
numbers come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from longtake.scheduler.errors import UserError


@dataclass(frozen=True)
class Link:
    """How devices reach each other.

    Attributes:
        bytes_per_second: that one device sends, while it receives as much.
        latency: seconds before the first byte arrives.
        total: bytes per second of all devices of a node together, where they share a host's memory
            or a network card; None: each has the link for itself.
    """

    bytes_per_second: float
    latency: float
    total: float | None = None

    def __post_init__(self) -> None:
        if not self.bytes_per_second > 0 or not (self.total is None or self.total > 0):
            raise UserError(f"a link must move more than 0 bytes per second, got {self}")
        if not self.latency >= 0:
            raise UserError(f"a link's latency must be at least 0 seconds, got {self.latency:g}")

    def rate(self, senders: int = 1) -> float:
        """Bytes per second of each, when so many devices of a node send at once."""
        shared = self.bytes_per_second if self.total is None else self.total / max(1, senders)
        return min(self.bytes_per_second, shared)

    def seconds(self, bytes_: float, messages: int = 1, senders: int = 1) -> float:
        """Of messages one after another, of so many bytes in all."""
        return messages * self.latency + bytes_ / self.rate(senders) if bytes_ else 0.0


@dataclass(frozen=True)
class Efficiency:
    """Which share of a device's peak its kernels reach.

    A launch too small to fill the device reaches less: n / (n + half) of that share, where n counts
    what is worked on side by side. On a GPU half of the last wave of tiles stands empty, so half is
    half its multiprocessors, in tiles.

    Attributes:
        attention: by kernel: `flash-2` and, where the device has it, `flash-3`.
        linear: of matrix products in the transformer.
        convolution: of the VAE, of the peak of `tf32`.
        attention_half: queries x heads at which attention reaches half of its share.
        linear_half: tokens x width at which matrix products do.
        memory: share of `bytes_per_second` that elementwise kernels reach.
    """

    attention: dict[str, float]
    linear: float
    convolution: float
    attention_half: float = 0.0
    linear_half: float = 0.0
    memory: float = 0.85


@dataclass(frozen=True)
class Device:
    """One accelerator, or the cores that a worker has.

    Attributes:
        memory: bytes.
        peak: FLOP per second, dense, by dtype: `bfloat16`, `float32`, `tf32`, `float8`.
        bytes_per_second: of its memory.
        launch_floor: seconds that an eager PyTorch takes to launch the kernels of one layer.
        convolution_floor: ... and those of a convolution of the VAE with what belongs to it.
        watts: under load; `idle_watts` while it waits.
        decode_shares: how much decoding slows down the transformer beside it: 1 where both take
            turns on one device, 0 where each has cores of its own; more where threads also wait for
            their turn.
        decode_yields: how much it is slowed down itself meanwhile; None: as much.
        task_floor: seconds of the host for a launch besides its kernels: sampler, cache, journal.
        exchange_floor: ... for an exchange with other workers besides its bytes: packing, posting,
            waking up, the merging of what comes.
        exchange_beside: ... while rank 0 decodes, since who wakes up then waits for a core; None:
            as much.
    """

    name: str
    memory: float
    peak: dict[str, float]
    bytes_per_second: float
    efficiency: Efficiency
    launch_floor: float
    convolution_floor: float
    watts: float
    idle_watts: float = 0.0
    decode_shares: float = 1.0
    decode_yields: float | None = None
    task_floor: float = 0.0
    exchange_floor: float = 0.0
    exchange_beside: float | None = None

    @property
    def crowding(self) -> float:
        """Seconds more that an exchange takes while rank 0 decodes."""
        beside = self.exchange_floor if self.exchange_beside is None else self.exchange_beside
        return max(0.0, beside - self.exchange_floor)

    @property
    def contention(self) -> tuple[float, float]:
        """How much the transformer and decoding beside it are slowed down."""
        yields = self.decode_shares if self.decode_yields is None else self.decode_yields
        return self.decode_shares, yields

    def peak_of(self, dtype: str) -> float:
        """FLOP per second of a dtype.

        Raises:
            UserError: the description has none for it.
        """
        if dtype not in self.peak:
            raise UserError(f"{self.name} has no peak for {dtype}; known: {', '.join(self.peak)}")
        return self.peak[dtype]

    def slowed(self, forward: float, decode: float) -> Device:
        """The same with forwards that take so many times as long, and convolutions of the VAE."""
        found = self.efficiency
        attention = {kernel: share / forward for kernel, share in found.attention.items()}
        return replace(
            self,
            efficiency=replace(
                found,
                attention=attention,
                linear=found.linear / forward,
                memory=found.memory / forward,
                convolution=found.convolution / decode,
            ),
            launch_floor=self.launch_floor * forward,
            task_floor=self.task_floor * forward,
            convolution_floor=self.convolution_floor * decode,
        )


@dataclass(frozen=True)
class Node:
    """`count` devices of one kind and what joins them.

    `shares_memory`: the device's memory is one for all of them, as workers on a CPU have it.
    """

    device: Device
    count: int
    link: Link
    shares_memory: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"a node must have at least 1 device, got {self.count}")


@dataclass(frozen=True)
class Cluster:
    """Nodes in order of rank; `network` joins them and may be None for a single node."""

    name: str
    nodes: tuple[Node, ...]
    network: Link | None = None
    _at: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.nodes:
            raise UserError(f"cluster {self.name} has no nodes")
        if self.network is None and len(self.nodes) > 1:
            raise UserError(f"cluster {self.name} has several nodes and needs a network")
        at = tuple(i for i, node in enumerate(self.nodes) for _ in range(node.count))
        object.__setattr__(self, "_at", at)

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """All devices; a worker's rank is its device's index."""
        return tuple(self.nodes[i].device for i in self._at)

    def node_of(self, rank: int) -> int:
        """The index of the node that a rank is on.

        Raises:
            UserError: the cluster has fewer devices.
        """
        if not 0 <= rank < len(self._at):
            raise UserError(f"cluster {self.name} has {len(self._at)} devices, no rank {rank}")
        return self._at[rank]

    def link(self, a: int, b: int) -> Link:
        """What joins two ranks."""
        here, there = self.node_of(a), self.node_of(b)
        if here == there:
            return self.nodes[here].link
        assert self.network is not None
        return self.network

    def slowest(self, ranks: tuple[int, ...]) -> Link:
        """The link that holds up an exchange among some ranks."""
        nodes = sorted({self.node_of(rank) for rank in ranks})
        if len(nodes) == 1:
            return self.nodes[nodes[0]].link
        assert self.network is not None
        return self.network
