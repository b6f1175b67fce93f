"""All workers of a run and their groups: the one place where groups are made."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from time import monotonic
from types import TracebackType
from typing import Self, cast

import torch
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # all are exported
    DistError,
    DistNetworkError,
    DistStoreError,
    PrefixStore,
    ProcessGroupGloo,
    TCPStore,
    is_nccl_available,
)

from longtake.parallel.errors import CommunicationError
from longtake.parallel.gloo_wire import GlooBackend, GlooWire
from longtake.parallel.group import Edge, Group
from longtake.parallel.nccl_wire import NcclBackend, NcclWire
from longtake.parallel.store import LocalStore, SharedStore, Store
from longtake.parallel.wire import Membership, Message, Wire
from longtake.scheduler.decode_degrees import BY_RANK_0, DecodeDegrees
from longtake.scheduler.degrees import Degrees, Place
from longtake.scheduler.errors import UserError
from longtake.scheduler.plan import DECODE
from longtake.scheduler.timeline import Action, Record, forget

# Which coordinates of a place vary within a group. Groups are made in this order everywhere.
ROLES = {
    "world": ("cfg", "stage", "clip", "ring", "ulysses"),
    "lane": ("cfg", "clip", "ring", "ulysses"),
    "sequence": ("ring", "ulysses"),
    "ulysses": ("ulysses",),
    "ring": ("ring",),
    "cfg": ("cfg",),
    "clip": ("clip",),
    "stage": ("stage",),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rendezvous:
    """Where the workers meet.

    Attributes:
        address, port: where rank 0 listens.
        rank: this worker's.
        world: how many workers there are.
        timeout: seconds that a worker waits for others at most, here and in every later operation.
        interface: the network interface for tensors on CPUs, such as `eth0`; empty: the one that
            leads to `address`.
        listen: False where somebody else, such as torchrun's agent, keeps the table there.
        prefix: of all entries, where others use that table too.
    """

    address: str
    port: int
    rank: int
    world: int
    timeout: float = 60.0
    interface: str = ""
    listen: bool = True
    prefix: str = ""


@dataclass(frozen=True)
class Decoders:
    """This worker among those that decode. Nothing else uses their connections.

    Attributes:
        bands: the workers of one stage of the decoder, in order of their rows.
        stages: the workers of one band, in order of their layers.
    """

    bands: Group
    stages: Group
    wires: tuple[Wire, ...]

    def close(self) -> None:
        """Disconnect, so that whoever waits in another thread of this process fails."""
        for wire in self.wires:
            wire.close()


class Mesh:
    """This worker among the others.

    As a context it waits for the others at the end, unless it is left by an error.

    Attributes:
        degrees, rank, place, device: of this worker.
        store: for short messages that are no tensors.
        world: all workers.
        lane: those that share the tasks of my stage: cfg x clip x ring x ulysses.
        sequence: those that share the tokens of my branch of guidance: ring x ulysses; the index
            is ring * ulysses degree + ulysses.
        ulysses, ring, cfg, clip, stage: along one axis, the index is the coordinate.
        decoders: None where this worker doesn't decode, or decodes alone.
    """

    def __init__(
        self,
        degrees: Degrees,
        rank: int,
        device: torch.device,
        store: Store,
        groups: dict[str, Group],
        wires: Sequence[Wire] = (),
        decoders: Decoders | None = None,
    ) -> None:
        self.degrees, self.rank, self.place = degrees, rank, degrees.place(rank)
        self.device, self.store, self._wires = device, store, tuple(wires)
        self.decoders = decoders
        self.world, self.lane, self.sequence = groups["world"], groups["lane"], groups["sequence"]
        self.ulysses, self.ring = groups["ulysses"], groups["ring"]
        self.cfg, self.clip, self.stage = groups["cfg"], groups["clip"], groups["stage"]

    def close(self) -> None:
        """Disconnect, whether or not the others have. Whoever still waits for this worker fails."""
        for wire in self._wires:
            wire.close()
        if self.decoders is not None:
            self.decoders.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with closing(self):
            if error is None:
                self.world.barrier()


def alone(device: torch.device) -> Mesh:
    """A mesh of one worker: no connections, all groups of size 1."""
    groups = {role: Group(role, [0], 0, None, device) for role in ROLES}
    return Mesh(Degrees(), 0, device, LocalStore(), groups)


def connect(rendezvous: Rendezvous) -> SharedStore:
    """Meet at the table of texts that rank 0 keeps, before it is known who does what.

    Raises:
        CommunicationError: rank 0 does not answer, or can't listen.
    """
    limit, rank = rendezvous.timeout, rendezvous.rank
    try:
        table = TCPStore(
            rendezvous.address,
            rendezvous.port,
            is_master=rank == 0 and rendezvous.listen,
            timeout=timedelta(seconds=limit),
            wait_for_workers=False,
        )
    except DistError as error:
        where = f"{rendezvous.address}:{rendezvous.port}"
        what = "can't listen" if rank == 0 else f"no answer within {limit:g} s"
        detail = f"{what} at {where}: {str(error).splitlines()[0]}"
        raise CommunicationError("rendezvous", rank, (0,), detail) from error
    if rendezvous.prefix:
        table = PrefixStore(rendezvous.prefix, table)  # type: ignore[assignment]  # it does as well
    return SharedStore(table, rank, limit)


def open_mesh(
    rendezvous: Rendezvous,
    degrees: Degrees,
    device: torch.device,
    record: Record = forget,
    store: SharedStore | None = None,
    decode: DecodeDegrees = BY_RANK_0,
) -> Mesh:
    """Meet the other workers and build all groups; tensors go over NCCL on GPUs, gloo on CPUs.

    Args:
        rendezvous: the same for all workers but for the rank.
        degrees: the same for all workers.
        device: where this worker's tensors lie.
        record: takes note of all transfers.
        store: None: `connect` is called first.
        decode: which workers decode; the same for all.

    Raises:
        ValueError: the degrees don't fit the world.
        UserError: torch was built without what the device needs.
        CommunicationError: who has not come in time, or wants other degrees, is named.
    """
    if degrees.world != rendezvous.world or not 0 <= rendezvous.rank < rendezvous.world:
        raise ValueError(
            f"{degrees.describe()} needs {degrees.world} workers, got rank {rendezvous.rank} of "
            f"{rendezvous.world}"
        )
    if decode.world > degrees.world:
        raise ValueError(f"decoding by {decode.describe()} needs {decode.world} workers")
    if device.type == "cuda" and not is_nccl_available():
        raise UserError("several GPUs need a torch that is built with NCCL, and this one is not")
    if store is None:
        store = connect(rendezvous)
    table = PrefixStore(f"mesh/{store.meshes}", store.table)
    store.meshes += 1
    _join(table, rendezvous, f"{degrees.describe()}, decoded by {decode.describe()}")
    builder = _Builder(rendezvous, device, table, record)
    place = degrees.place(rendezvous.rank)
    groups = {
        role: builder.group(role, members(degrees, place, role), linked=role == "stage")
        for role in ROLES
    }
    _begin(*groups.values())
    decoders = _decoders(rendezvous, decode, device, table, record)
    return Mesh(degrees, rendezvous.rank, device, store, groups, builder.wires, decoders)


def _decoders(
    rendezvous: Rendezvous,
    decode: DecodeDegrees,
    device: torch.device,
    table: PrefixStore,
    record: Record,
) -> Decoders | None:
    """The groups of decoding; what they do is recorded in a lane of its own."""
    rank = rendezvous.rank
    if decode.world == 1 or rank >= decode.world:
        return None

    def beside(action: Action) -> None:
        record(replace(action, lane=DECODE))

    builder = _Builder(
        rendezvous, device, PrefixStore(DECODE, table), forget if record is forget else beside
    )
    bands = builder.group("decoder band", decode.bands_of(rank))
    stages = builder.group("decoder stage", decode.stages_of(rank), linked=True)
    _begin(bands, stages)
    return Decoders(bands, stages, tuple(builder.wires))


class _Builder:
    """Makes groups and what connects them. Groups of the same members share one wire."""

    def __init__(
        self, rendezvous: Rendezvous, device: torch.device, store: PrefixStore, record: Record
    ) -> None:
        self._rendezvous, self._device = rendezvous, device
        self._store, self._record = store, record
        self._shared: dict[tuple[int, ...], Wire] = {}
        self.wires: list[Wire] = []

    def group(self, name: str, ranks: tuple[int, ...], linked: bool = False) -> Group:
        """This worker's group of such ranks; `linked`: as stages, with wires for `Link`."""
        index = ranks.index(self._rendezvous.rank)
        if len(ranks) == 1:
            return Group(name, ranks, 0, None, self._device)
        if ranks not in self._shared:
            self._shared[ranks] = self._wire(name, ranks, index)
        edges = self._edges(name, ranks, index) if linked else {}
        return Group(name, ranks, index, self._shared[ranks], self._device, edges)

    def _edges(self, name: str, ranks: tuple[int, ...], index: int) -> dict[Edge, Wire]:
        """A wire for each direction to and from the neighbours, so that they never queue up."""
        size = len(ranks)
        edges: dict[Edge, Wire] = {}
        for source in range(size):
            target = (source + 1) % size
            if index in (source, target):
                way, ends = f"{name} {source} to {target}", (ranks[source], ranks[target])
                edges[source, target] = self._wire(way, ends, int(index == target))
        return edges

    def _wire(self, name: str, ranks: tuple[int, ...], index: int) -> Wire:
        meeting = self._rendezvous
        member = Membership(ranks, index, meeting.timeout, self._record)
        prefix = PrefixStore(f"{name}/{'-'.join(map(str, ranks))}", self._store)
        try:
            wire = self._connect(prefix, member)
        except RuntimeError as error:
            others = [peer for peer in range(len(ranks)) if peer != index]
            detail = f"no connection within {meeting.timeout:g} s: {str(error).splitlines()[0]}"
            raise member.failure(f"connect {name}", others, detail) from error
        self.wires.append(wire)
        return wire

    def _connect(self, store: PrefixStore, member: Membership) -> Wire:
        size = len(member.ranks)
        if self._device.type == "cuda":
            from torch.distributed.distributed_c10d import ProcessGroupNCCL  # absent without CUDA

            nccl = ProcessGroupNCCL.Options()
            # The wire has a timeout of its own; NCCL's would end the process.
            nccl._timeout = timedelta(days=365)
            backend = ProcessGroupNCCL(store, member.index, size, nccl)
            return NcclWire(cast(NcclBackend, backend), member, self._device)
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=member.timeout)
        options._threads = 2
        options._devices = [self._gloo_device()]
        gloo = ProcessGroupGloo(store, member.index, size, options)
        return GlooWire(cast(GlooBackend, gloo), member)

    def _gloo_device(self) -> ProcessGroupGloo.Device:
        if interface := self._rendezvous.interface:
            names = [name for _, name in socket.if_nameindex()]
            if interface not in names:
                legal = ", ".join(names)
                raise UserError(f"this host has no network interface {interface!r}, but {legal}")
            return ProcessGroupGloo.create_device(interface=interface)
        return ProcessGroupGloo.create_device(hostname=own_address(self._rendezvous))


def members(degrees: Degrees, place: Place, role: str) -> tuple[int, ...]:
    """The ranks of a worker's group of a role, in order."""
    fixed = {axis: getattr(place, axis) for axis in ROLES["world"] if axis not in ROLES[role]}
    return tuple(
        degrees.rank(other) for other in degrees.places() if replace(other, **fixed) == other
    )


def own_address(rendezvous: Rendezvous) -> str:
    """This host's address on the network that leads to rank 0."""
    family, kind, protocol, _, target = socket.getaddrinfo(
        rendezvous.address, rendezvous.port, type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)  # sends nothing, but finds the way
        return str(probe.getsockname()[0])


def _join(table: PrefixStore, rendezvous: Rendezvous, plan: str) -> None:
    """See that all have come, for the same plan."""
    rank, limit = rendezvous.rank, rendezvous.timeout
    deadline = monotonic() + limit
    keys = [f"joined/{peer}" for peer in range(rendezvous.world)]
    try:
        table.set(keys[rank], plan)
        for peer, key in enumerate(keys):
            table.wait([key], timedelta(seconds=max(0.001, deadline - monotonic())))
            theirs = table.get(key).decode()
            if theirs != plan:
                detail = f"it was told {theirs}, this worker {plan}"
                raise CommunicationError("rendezvous", rank, (peer,), detail)
    except DistStoreError as error:
        missing = [peer for peer, key in enumerate(keys) if not table.check([key])]
        detail = f"not at {rendezvous.address}:{rendezvous.port} within {limit:g} s"
        raise CommunicationError("rendezvous", rank, missing, detail) from error
    except DistNetworkError as error:
        detail = "rank 0 is gone"
        raise CommunicationError("rendezvous", rank, (0,), detail) from error


def _begin(*groups: Group) -> None:
    """The first messages of all wires: on GPUs these set up connections, which takes both ends."""
    for group in groups:
        group.barrier()
    for group in groups:
        for edge, wire in group.edges.items():
            _warm_up(wire, edge, group.index, group.device)


def _warm_up(wire: Wire, edge: Edge, index: int, device: torch.device) -> None:
    token: Tensor = torch.zeros(1, dtype=torch.uint8, device=device)
    if index == edge[0]:
        wire.run("warm-up", [Message(1, token)], [])
    else:
        wire.run("warm-up", [], [Message(0, token)])
