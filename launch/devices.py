"""What the workers of a run compute on, told to the planner: by a file, or by what is here."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import replace
from pathlib import Path

import torch

from longtake.launch.auto_plan import Described
from longtake.launch.clusters import load_cluster, load_device, load_link
from longtake.launch.config import options
from longtake.launch.settings import ParallelSettings
from longtake.launch.surroundings import Hosts
from longtake.runtime.memory import available_bytes
from longtake.scheduler.cluster import Cluster, Device, Link, Node
from longtake.scheduler.errors import UserError

HERE = Path("here.yaml")  # what `longtake calibrate` writes, in the working directory
STAND_IN = "a100"  # for GPUs that nothing describes
NETWORK = {"cuda": "infiniband-hdr", "cpu": "ethernet-25g"}  # between hosts, where none is told


def describe_devices(device: torch.device, settings: ParallelSettings, hosts: Hosts) -> Described:
    """The devices of a run, by rank: as `parallel.cluster` says, as they were measured, or by name.

    Args:
        device: rank 0's, or what is like it on other hosts.
        settings: how many workers there are, and their cluster where it is told.
        hosts: where they are.

    Raises:
        UserError: the cluster that was asked for is not there, or too small.
    """
    workers = settings.workers
    if settings.cluster is not None:
        cluster = load_cluster(settings.cluster)
        if len(cluster.devices) < workers:
            raise UserError(
                f"{workers} workers need a device each, but {cluster.name} has "
                f"{len(cluster.devices)}"
            )
        return Described(cluster, settings.cluster)
    local = hosts.device is None
    counts = hosts.workers or (workers,)
    if local and len(counts) == 1 and HERE.is_file():
        cluster = load_cluster(str(HERE))
        if _suits(cluster, device, workers):
            return Described(cluster, str(HERE))
    if device.type == "cuda":
        name = hosts.gpu or (torch.cuda.get_device_name(device) if local else "a GPU")
        found, link, by = describe_gpu(name)
    else:
        found, link, by = _core(max(counts)), load_link("loopback"), "a guess of this CPU"
    if local:
        found = replace(found, memory=float(available_bytes(device)))
    nodes = tuple(Node(found, count, link, device.type == "cpu") for count in counts)
    network = load_link(NETWORK[device.type]) if len(nodes) > 1 else None
    return Described(Cluster("here", nodes, network), by)


def describe_gpu(name: str) -> tuple[Device, Link, str]:
    """A GPU by what its driver calls it, what joins several of them, and by what both are known."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    known = max((each for each in options("device") if each in plain), key=len, default=None)
    kind = STAND_IN if known is None else known
    clusters = [f"{kind}-pciex8"] * ("pcie" in plain) + [f"{kind}x8"]
    described = [each for each in clusters if each in options("cluster")]
    link = load_cluster(described[0]).nodes[0].link if described else load_link("pcie4")
    by = f"{name}, taken for an {STAND_IN}" if known is None else f"what is known of {known}"
    return replace(load_device(kind), name=name), link, by


def device_name(device: torch.device) -> str:
    """What to call a device: as its driver does, or by processor and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def share_cores(device: torch.device, workers: int = 1) -> None:
    """On a CPU, give torch half of the cores at most, or the share of one of several `workers` of
    this host: denoising and decoding run side by side.

    This holds for the whole process. Fewer threads, set before, stay.
    """
    if device.type == "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), _threads(workers)))


def _threads(workers: int) -> int:
    """That one of so many workers of this host has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // max(2, workers))


def _processor() -> str:
    return platform.processor() or platform.machine()


def _suits(cluster: Cluster, device: torch.device, workers: int) -> bool:
    """Whether a measured cluster is of such devices, and of enough of them."""
    name = _processor() if device.type == "cpu" else torch.cuda.get_device_name(device)
    names = {each.name.partition(", ")[0] for each in cluster.devices}
    return names == {name} and len(cluster.devices) >= workers


def _core(workers: int) -> Device:
    """The cores that one of so many workers of a host has."""
    core, threads = load_device("cpu"), _threads(workers)
    return replace(core, peak={dtype: rate * threads for dtype, rate in core.peak.items()})
