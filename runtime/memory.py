"""Will it fit? Asked before anything large is allocated."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from longtake.runtime import cgroup
from longtake.runtime.model_folder import Layout
from longtake.runtime.vae_layouts import read_vae_config
from longtake.runtime.weight_files import read_headers
from longtake.runtime.weight_layouts import plain_names
from longtake.scheduler.degrees import Degrees, shares
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Strategy

ACTIVATION_COPIES = 12  # width-sized tensors alive at the peak of one layer, feed-forward included
MEMINFO = Path("/proc/meminfo")
_LAYER = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class Need:
    """What one worker holds at its peak, in bytes.

    Attributes:
        weights: once loaded.
        run: caches, and activations of one launch.
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


def weight_bytes(sources: Iterable[Path], itemsize: int) -> int:
    """What weights take once loaded with `itemsize` bytes each, read off their headers."""
    headers = [tensor for source in sources for tensor in read_headers(source).values()]
    return sum(prod(tensor.shape) for tensor in headers) * itemsize


def transformer_bytes(source: Path, itemsize: int, layers: range) -> int:
    """What a transformer takes of which only these layers are loaded, read off its headers."""
    stored = read_headers(source)
    total = 0
    for name, key in plain_names(stored).items():
        match = _LAYER.match(name)
        if match is None or int(match[1]) in layers:
            total += prod(stored[key].shape)
    return total * itemsize


def worker_needs(
    layout: Layout,
    spec: ModelSpec,
    strategy: Strategy,
    request: Request,
    itemsize: int,
    degrees: Degrees,
) -> list[Need]:
    """What each worker needs, by rank; rank 0 alone reads prompts and decodes.

    `itemsize` is of the transformer's and the text encoder's dtype; the VAE is in float32.
    """
    own = [degrees.layers(stage, spec) for stage in range(degrees.stages)]
    weights = [
        transformer_bytes(layout.transformer, itemsize, range(layers.start, layers.stop))
        for layers in own
    ]
    run = run_bytes(spec, strategy, request, itemsize, degrees)
    first, *others = [Need(weights[place.stage], run) for place in degrees.places()]
    besides = weight_bytes([layout.text_encoder], itemsize) + weight_bytes([layout.vae], 4)
    decode = decode_bytes(spec, request, read_vae_config(layout.vae)["base_dim"])
    return [Need(first.weights + besides, first.run, decode), *others]


def run_bytes(
    spec: ModelSpec, strategy: Strategy, request: Request, itemsize: int, degrees: Degrees
) -> int:
    """One worker's cache and activations of one launch, in bytes.

    `itemsize` is of the transformer's dtype.
    """
    rows, columns = spec.grid(request.height, request.width)
    branches = (2 if request.guidance > 1 else 1) // degrees.cfg
    tokens = len(shares(rows * columns, degrees.sequence)[0]) * branches
    cached = strategy.cached_frames(request, spec)
    clips = strategy.clips(request, spec)
    share = len(shares(clips, degrees.clip)[0])  # of the parts of a launch, for the largest
    frames = -(-strategy.longest_launch(request, spec) * share // clips)
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
