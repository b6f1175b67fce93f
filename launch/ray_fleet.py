"""The devices of a Ray cluster, and runners on its nodes, which come and go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longtake.launch.fleet import Hear
from longtake.launch.local_fleet import LEASE
from longtake.launch.ray_cluster import RESOURCES, brief, cluster_device, import_ray, join_cluster
from longtake.launch.ray_group import KILL_SECONDS, Post, RayGroup
from longtake.launch.ray_outpost import Outpost
from longtake.scheduler.errors import UserError
from longtake.scheduler.queue_state import FleetDevice

LOOK_SECONDS = 1.0  # between two looks at the nodes
CALLS_AT_ONCE = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Node:
    id: str
    address: str
    devices: tuple[FleetDevice, ...]


class RayFleet:
    """All GPUs of a cluster, or all its CPUs, as many as Ray counts.

    Nodes that join are used within seconds, those that are lost are no longer there as soon as Ray
    says so. The folder of logs, and that of videos, must be the same for all nodes.
    """

    def __init__(
        self,
        folder: Path,
        address: str = "auto",
        lease: float = LEASE,
        log_format: str = "text",
    ) -> None:
        """Logs go to `folder`; `address` is of `launch.ray_cluster.join_cluster`.

        Raises:
            UserError: there is no such cluster.
        """
        join_cluster(address)
        self._ray = import_ray()
        self.kind = cluster_device()
        self._folder, self._lease, self._log_format = folder, lease, log_format
        self._probes: dict[str, Any] = {}
        self._memory: dict[str, float] = {}
        self._nodes: dict[str, _Node] = {}
        self._groups: set[RayGroup] = set()
        self._closed = threading.Event()
        self._look()
        threading.Thread(target=self._watch, name="ray nodes", daemon=True).start()

    def devices(self) -> Sequence[FleetDevice]:
        """See `Fleet`."""
        return [device for node in self._nodes.values() for device in node.devices]

    def open(self, devices: Sequence[str], hear: Hear) -> RayGroup:
        """See `Fleet`."""
        nodes = [
            (node, own)
            for node in self._nodes.values()
            if (own := [d.name for d in node.devices if d.name in devices])
        ]
        if sum(len(own) for _, own in nodes) < len(devices):
            raise UserError(f"not all of {', '.join(devices)} are there any more")
        nodes.sort(key=lambda each: devices.index(each[1][0]))
        posts = [Post(self._actor(node, len(own)), tuple(own)) for node, own in nodes]
        group = RayGroup(posts, hear, self._folder, self._lease, self._log_format)
        self._groups = {other for other in self._groups if not other.gone.is_set()} | {group}
        return group

    def close(self) -> None:
        """See `Fleet`."""
        self._closed.set()
        for group in self._groups:
            group.kill()
            group.gone.wait(KILL_SECONDS)

    def _actor(self, node: _Node, count: int) -> Any:
        return (
            self._ray.remote(Outpost)
            .options(
                num_cpus=count if self.kind == "cpu" else 0,
                num_gpus=count if self.kind == "cuda" else 0,
                max_concurrency=CALLS_AT_ONCE,
                scheduling_strategy=_on(node.id),
            )
            .remote()
        )

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        found = {}
        for told in self._ray.nodes():
            count = int(told["Resources"].get(RESOURCES[self.kind], 0))
            if told["Alive"] and count and self._is_known(told["NodeID"]):
                found[told["NodeID"]] = self._describe(told, count)
        self._nodes = found

    def _is_known(self, node: str) -> bool:
        """A node of GPUs is of use once it has told how much memory they have."""
        if self.kind == "cpu" or node in self._memory:
            return True
        if node not in self._probes:
            task = self._ray.remote(gpu_memory).options(
                num_cpus=0, num_gpus=1, scheduling_strategy=_on(node)
            )
            self._probes[node] = task.remote()
        if not self._ray.wait([self._probes[node]], timeout=0)[0]:
            return False
        try:
            self._memory[node] = self._ray.get(self._probes.pop(node))
        except self._ray.exceptions.RayError as error:
            logger.warning("the GPUs of a node can't be used: %s", brief(error))
        return node in self._memory

    def _describe(self, told: Mapping[str, Any], count: int) -> _Node:
        address = told["NodeManagerAddress"]
        memory = told["Resources"].get("memory", 0.0) / count
        if self.kind == "cuda":
            memory = self._memory[told["NodeID"]]
        devices = tuple(
            FleetDevice(f"{address}/{self.kind}{number}", address, memory)
            for number in range(count)
        )
        return _Node(told["NodeID"], address, devices)


def gpu_memory() -> float:
    """Bytes of the GPU that Ray shows this process."""
    return float(torch.cuda.get_device_properties(0).total_memory)


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)
