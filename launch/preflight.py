"""Before weights load: is there memory for them, and did all workers start out the same?"""

from __future__ import annotations

import json
import logging
import platform
import re
import socket
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import longtake
from longtake.parallel.preflight import find_differences, nccl_version, recall, share
from longtake.parallel.store import Store
from longtake.runtime.memory import Need, available_bytes
from longtake.runtime.weight_digest import weights_digest
from longtake.scheduler.errors import UserError
from longtake.scheduler.fitting import find_shortages

if TYPE_CHECKING:
    from longtake.launch.draft import Draft

logger = logging.getLogger(__name__)

# What a difference comes to. The first three can't be worked with.
_REFUSED = {
    "longtake": "workers of different versions don't understand each other",
    "NCCL": "it does not connect different versions",
    "weights": "the workers would share the layers of different models",
}
_TOLD = {
    "torch": "results may differ in rounding from a run of one version",
    "driver": "results may differ in rounding from a run of one version",
    "Python": "this is not known to matter",
}
TOPIC = "profile"  # of what the workers tell each other
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Profile:
    """What a worker tells of itself.

    Attributes:
        host: its name.
        device: as torch names it.
        memory: tells this device's memory from any other; processes on one CPU share it.
        free: bytes of it.
        need: what the plan has this worker hold.
        versions: name to version, of the names in `_REFUSED` and `_TOLD`.
    """

    host: str
    device: str
    memory: str
    free: int
    need: Need
    versions: dict[str, str]

    def to_json(self) -> str:
        """For the control store."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """The inverse."""
        told = json.loads(text)
        return cls(**{**told, "need": Need(**told["need"])})


@dataclass(frozen=True)
class Survey:
    """All workers, by rank, and what there is to say of them, the same on every worker.

    `problems` make a run impossible, `warnings` don't.
    """

    profiles: tuple[Profile, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


class Unfit(UserError):
    """The run can't be; `survey` tells all about it."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        super().__init__("; ".join(survey.problems))


def preflight(store: Store, rank: int, draft: Draft, device: torch.device) -> Survey:
    """What all workers of a run do, once, before they open the mesh and load weights.

    It comes before the mesh, since NCCL says less clearly what keeps it from connecting. Warnings
    are logged on rank 0.

    Raises:
        Unfit: on all workers.
        UserError: weights are missing or damaged on this host.
        CommunicationError: a worker does not tell of itself in time.
    """
    own, timeout = describe_worker(draft, rank, device), draft.settings.parallel.timeout
    told = share(store, rank, draft.degrees.world, TOPIC, own.to_json(), timeout)
    found = judge([Profile.from_json(text) for text in told])
    if rank == 0:
        for warning in found.warnings:
            logger.warning("%s", warning)
    if found.problems:
        raise Unfit(found)
    return found


def recall_survey(store: Store, world: int) -> Survey:
    """What `preflight` has found.

    Raises:
        CommunicationError: rank 0 is gone.
    """
    return judge([Profile.from_json(text) for text in recall(store, world, TOPIC)])


def describe_worker(draft: Draft, rank: int, device: torch.device) -> Profile:
    """What this worker tells of itself.

    Raises:
        UserError: weights are missing or damaged here.
    """
    weights = draft.config.layout().transformer
    return Profile(
        host=socket.gethostname(),
        device=str(device),
        memory=_memory(device),
        free=available_bytes(device),
        need=draft.needs(device)[rank],
        versions={
            **versions(device),
            "weights": weights_digest(weights)[:12],
        },
    )


def versions(device: torch.device) -> dict[str, str]:
    """Of all that workers on such devices must, or better should, have in common."""
    told = {
        "longtake": longtake.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    if device.type == "cuda":
        told |= {"NCCL": nccl_version(), "driver": _driver()}
    return told


def judge(profiles: Sequence[Profile]) -> Survey:
    """Compare the workers of a run, who are given by rank."""
    different = {
        name: f"{name} is not the same everywhere: {_who_has(values, profiles)}"
        for name, values in find_differences([profile.versions for profile in profiles]).items()
    }
    refused = [f"{told}; {_REFUSED[name]}" for name, told in different.items() if name in _REFUSED]
    warned = [f"{told}; {_TOLD[name]}" for name, told in different.items() if name in _TOLD]
    return Survey(tuple(profiles), (*refused, *shortage_lines(profiles)), tuple(warned))


def shortage_lines(profiles: Sequence[Profile]) -> list[str]:
    """A sentence for every memory that is too small for the workers that share it."""
    memory_of = {rank: profile.memory for rank, profile in enumerate(profiles)}
    needed = {rank: profile.need.total for rank, profile in enumerate(profiles)}
    free: dict[Hashable, float] = {}
    for profile in profiles:
        free[profile.memory] = min(profile.free, free.get(profile.memory, inf))
    told = []
    for short in find_shortages(needed, memory_of, free):
        ranks, one = short.ranks, len(short.ranks) == 1
        weights = sum(profiles[rank].need.weights for rank in ranks)
        advice = "more stages" if one else "fewer workers on this host"
        told.append(
            f"{name_workers(ranks, profiles)} {'needs' if one else 'need'} about "
            f"{describe_bytes(short.needed)} on {profiles[ranks[0]].device}, "
            f"{describe_bytes(weights)} of them for weights, but {describe_bytes(short.free)} are "
            f"free; take {advice}, or a smaller size or window"
        )
    return told


def name_workers(ranks: Sequence[int], profiles: Sequence[Profile]) -> str:
    """For people: `workers 0, 2 (hosts a, b)`."""
    hosts = list(dict.fromkeys(profiles[rank].host for rank in ranks))
    plural = "s" if len(ranks) > 1 else ""
    where = f"host{'s' if len(hosts) > 1 else ''} {', '.join(hosts)}"
    return f"worker{plural} {', '.join(map(str, ranks))} ({where})"


def describe_bytes(count: float) -> str:
    """For people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _who_has(values: dict[str, list[int]], profiles: Sequence[Profile]) -> str:
    return ", ".join(f"{value} on {name_workers(who, profiles)}" for value, who in values.items())


def _memory(device: torch.device) -> str:
    """One name for each memory; GPUs have a number of their own, wherever they are."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).uuid)
    return f"{socket.gethostname()} {device.type}"


def _driver() -> str:
    """The version of NVIDIA's kernel module; `unknown` where the system does not tell."""
    told = _DRIVER.read_text() if _DRIVER.is_file() else ""
    found = re.search(r"\d+\.\d+(\.\d+)*", told)
    return found[0] if found else "unknown"
