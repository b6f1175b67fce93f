"""Will it fit? Asked before anything large is allocated."""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch

from longtake.runtime.weight_files import read_headers
from longtake.scheduler.degrees import Degrees, shares
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Strategy
from longtake.scheduler.strategies.causal import Causal

ACTIVATION_COPIES = 12  # width-sized tensors alive at the peak of one layer, feed-forward included
MEMINFO = Path("/proc/meminfo")


def available_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if MEMINFO.exists():  # free pages alone would leave out those that only cache files
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def weight_bytes(sources: Iterable[Path], itemsize: int) -> int:
    """What weights take once loaded with `itemsize` bytes each, read off their headers."""
    headers = [tensor for source in sources for tensor in read_headers(source).values()]
    return sum(prod(tensor.shape) for tensor in headers) * itemsize


def run_bytes(
    spec: ModelSpec, strategy: Strategy, request: Request, itemsize: int, degrees: Degrees
) -> int:
    """One worker's cache and activations of one launch, in bytes.

    `itemsize` is of the transformer's dtype.
    """
    rows, columns = spec.grid(request.height, request.width)
    branches = (2 if request.guidance > 1 else 1) // degrees.cfg
    tokens = len(shares(rows * columns, degrees.sequence)[0]) * branches
    if isinstance(strategy, Causal):
        cached = strategy.retention.capacity(strategy.latent_frames(request, spec))
        switches = request.seconds is None or len(request.cues) > 1
        frames = cached if switches and strategy.retention.recache else spec.block_frames
    else:
        cached, frames = 0, spec.latent_frames(request.pixel_frames)
    width = spec.heads * spec.head_dim
    layers = len(degrees.layers(0, spec))
    cache = 2 * layers * cached * tokens * width * itemsize
    return cache + ACTIVATION_COPIES * frames * tokens * width * 4


def decode_bytes(spec: ModelSpec, request: Request, vae_width: int) -> int:
    """The VAE's largest feature maps, in bytes; `vae_width` is its `base_dim`."""
    return request.height * request.width * spec.temporal_stride * vae_width * 4 * 4


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
