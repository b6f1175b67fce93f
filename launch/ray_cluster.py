"""The workers of a run as actors of a Ray cluster: placed, ranked, and told where to meet."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longtake.launch.crew import MEETING_SECONDS, WorkerLost
from longtake.launch.ray_token import use_token
from longtake.launch.surroundings import Hosts, Surroundings
from longtake.scheduler.errors import UserError

if TYPE_CHECKING:
    from longtake.launch.draft import Draft
    from longtake.launch.ray_worker import Seat

KNOCK_SECONDS = 10.0
CALLS_AT_ONCE = 4  # of rank 0's methods: one that works, and those that look after it
RESOURCES = {"cuda": "GPU", "cpu": "CPU"}  # what Ray calls that of which a worker takes one


@dataclass(frozen=True)
class RayWorkers:
    """Actors by rank, where they sit, and what surrounds them."""

    actors: Sequence[Any]
    seats: Sequence[Seat]
    arounds: Sequence[Surroundings]

    def name(self, rank: int) -> str:
        """For people."""
        seat = self.seats[rank]
        return f"worker {rank} (host {seat.host} at {seat.address}, process {seat.pid})"


def import_ray() -> Any:
    """Ray is an extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("Ray is not installed; add it with: pip install 'longtake[ray]'") from error
    return ray


def join_cluster(address: str) -> None:
    """Make this process a driver of the cluster, unless it is one already.

    Args:
        address: HOST:PORT, or `auto` for the one that this host is part of.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    use_token()
    ray = import_ray()
    if ray.is_initialized():
        return
    if address != "auto":
        _knock(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"no way into a Ray cluster at {address!r}: {reason}") from error


def _knock(address: str) -> None:
    """See that somebody is there, for Ray itself would wait for minutes."""
    match = re.fullmatch(r"([^/\s]+):([0-9]+)", address)
    if match is None:
        raise UserError(f"a Ray cluster is named HOST:PORT, or auto; got {address!r}")
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from error


def cluster_device() -> str:
    """What `auto` means on the cluster: cuda where it has GPUs, else cpu."""
    return "cuda" if import_ray().cluster_resources().get("GPU", 0) else "cpu"


def cluster_hosts(workers: int) -> Hosts:
    """Where so many workers would go: to the largest hosts first."""
    ray = import_ray()
    there = ray.cluster_resources()
    device = cluster_device()
    names = [name.partition(":")[2] for name in there if name.startswith("accelerator_type:")]
    room = (int(node["Resources"].get(RESOURCES[device], 0)) for node in ray.nodes())
    counts: list[int] = []
    for most in sorted(room, reverse=True):
        if (left := workers - sum(counts)) > 0 and most:
            counts.append(min(most, left))
    return Hosts(tuple(counts), device, names[0] if len(names) == 1 else None)


@contextmanager
def ray_workers(draft: Draft) -> Iterator[RayWorkers]:
    """Start one actor for each worker; when the block is left, they are gone.

    Workers of one host have neighbouring ranks; those of the driver's host come first.

    Raises:
        UserError: the cluster has no room.
        WorkerLost: they did not come up.
    """
    ray = import_ray()
    kind, world = RESOURCES[draft.device.type], draft.degrees.world
    group = _reserve(kind, world)
    actors: list[Any] = []
    try:
        bundles = _by_rank(group)
        for rank, bundle in enumerate(bundles):
            actors.append(_start(group, bundle, kind, leads=rank == 0))
        seats, port = _settle(actors)
        nodes = list(bundles.values())
        arounds = [
            Surroundings(
                launcher="ray",
                rank=rank,
                world=world,
                local_rank=nodes[:rank].count(node),
                local_world=nodes.count(node),
                address=seats[0].address,
                port=port,
            )
            for rank, node in enumerate(nodes)
        ]
        yield RayWorkers(actors, seats, arounds)
    finally:
        for actor in actors:
            ray.kill(actor)
        ray.util.remove_placement_group(group)


def _reserve(kind: str, world: int) -> Any:
    """A placement group with a bundle for each worker, on as few hosts as have room."""
    ray = import_ray()
    there = ray.cluster_resources().get(kind, 0)
    if there < world:
        noun = "worker needs" if world == 1 else "workers need"
        raise UserError(f"{world} {noun} a {kind} each, but the Ray cluster has {there:g}")
    group = ray.util.placement_group([{kind: 1}] * world, strategy="PACK")
    if not group.wait(MEETING_SECONDS):
        free = ray.available_resources().get(kind, 0)
        ray.util.remove_placement_group(group)
        raise UserError(
            f"the Ray cluster is busy: {world} of its {there:g} {kind}s were not free within "
            f"{MEETING_SECONDS:g} s, {free:g} are now"
        )
    return group


def _by_rank(group: Any) -> dict[int, str]:
    """The node of each bundle, in the order of the ranks that they get."""
    ray = import_ray()
    placed: Mapping[int, str] = ray.util.placement_group_table(group)["bundles_to_node_id"]
    here = ray.get_runtime_context().get_node_id()
    nodes = list(dict.fromkeys([here, *(placed[bundle] for bundle in sorted(placed))]))
    order = sorted(placed, key=lambda bundle: (nodes.index(placed[bundle]), bundle))
    return {bundle: placed[bundle] for bundle in order}


def _start(group: Any, bundle: int, kind: str, leads: bool) -> Any:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from longtake.launch.ray_worker import Follower, Leader

    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    actor = import_ray().remote(Leader if leads else Follower)
    return actor.options(
        num_cpus=int(kind == "CPU"),
        num_gpus=int(kind == "GPU"),
        max_concurrency=CALLS_AT_ONCE if leads else 1,
        scheduling_strategy=place,
    ).remote()


def _settle(actors: Sequence[Any]) -> tuple[list[Seat], int]:
    """Where all sit, and the port where they meet."""
    ray = import_ray()
    asked = [*(actor.seat.remote() for actor in actors), actors[0].free_port.remote()]
    try:
        *seats, port = ray.get(asked, timeout=MEETING_SECONDS)
    except ray.exceptions.RayError as error:
        raise WorkerLost(f"the workers did not come up: {brief(error)}") from error
    return seats, port


def brief(error: Exception) -> str:
    """What Ray says of a failure, in one line."""
    ray = import_ray()
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process is dead or can't be reached"
    return " ".join(str(error).split())
