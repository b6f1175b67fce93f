"""Will it fit? Asked before anything large is allocated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from longtake.runtime import cgroup
from longtake.scheduler.decode_degrees import BY_RANK_0, DecodeDegrees
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.footprint import footprint
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Needs

MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Need:
    """What one worker holds at its peak, in bytes.

    Attributes:
        weights: once loaded.
        run: caches, activations of one launch, buffers and latents.
        decode: the VAE's feature maps.
    """

    weights: int
    run: int
    decode: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.run + self.decode


def available_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if MEMINFO.exists():  # free pages alone would leave out those that only cache files
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        host = int(lines["MemAvailable"].split()[0]) * 1024
        limited = cgroup.free_bytes()
        return host if limited is None else min(host, limited)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def worker_needs(
    spec: ModelSpec,
    strategy: Needs,
    request: Request,
    itemsize: int,
    degrees: Degrees,
    decode: DecodeDegrees = BY_RANK_0,
    on_cpu: bool = False,
) -> list[Need]:
    """What each worker needs, by rank; see `scheduler.footprint`, which plans are judged by too."""
    held = (
        footprint(spec, request, degrees, itemsize, strategy, rank, decode, on_cpu)
        for rank in range(degrees.world)
    )
    return [
        Need(each.weights, each.total - each.weights - each.decode, each.decode) for each in held
    ]


def check_memory(needed: int, device: torch.device, request: Request, weights: int = 0) -> None:
    """Refuse a run that can't fit; `weights` counts those that are still to be loaded.

    Raises:
        UserError: with the memory needed against the memory there.
    """
    there = available_bytes(device)
    if needed + weights > there:
        besides = f"and {weights / 2**30:.1f} GiB for" if weights else "besides"
        raise UserError(
            f"{request.width}x{request.height} needs about {needed / 2**30:.1f} GiB {besides} the "
            f"weights, but {there / 2**30:.1f} GiB are free on {device}; "
            "take a smaller size or window"
        )
