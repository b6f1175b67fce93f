"""Will it fit? Asked before anything large is allocated."""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch

from longtake.runtime.weight_files import read_headers
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
    spec: ModelSpec, strategy: Strategy, request: Request, itemsize: int, vae_width: int
) -> int:
    """Cache, activations of one launch and the VAE's largest feature maps, in bytes.

    `itemsize` is of the transformer's dtype, `vae_width` the VAE's `base_dim`.
    """
    rows, columns = spec.grid(request.height, request.width)
    cached = 0
    if isinstance(strategy, Causal):
        blocks = strategy.blocks(request, spec)
        total = None if blocks is None else blocks * spec.block_frames
        cached = strategy.retention.capacity(total)
    frames = spec.block_frames if cached else spec.latent_frames(request.pixel_frames)
    tokens = rows * columns * (2 if request.guidance > 1 else 1)
    width = spec.heads * spec.head_dim
    cache = 2 * spec.layers * cached * tokens * width * itemsize
    activations = ACTIVATION_COPIES * frames * tokens * width * 4
    pixels = request.height * request.width * spec.temporal_stride * vae_width * 4 * 4
    return cache + activations + pixels


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
