"""Will it fit? Asked before anything large is allocated."""

from __future__ import annotations

import os

import torch

from longtake.runtime.model import Model
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Request

ACTIVATION_COPIES = 12  # width-sized tensors alive at the peak of one layer, feed-forward included


def available_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def needed_bytes(model: Model, cached_frames: int, request: Request) -> int:
    """Cache, activations of one launch and the VAE's largest feature maps, in bytes.

    `cached_frames` is 0 for a strategy that evaluates all frames at once.
    """
    spec = model.spec
    rows, columns = spec.grid(request.height, request.width)
    batch = 2 if request.guidance > 1 else 1
    size = model.transformer.dtype.itemsize
    width = spec.heads * spec.head_dim
    frames = spec.block_frames if cached_frames else spec.latent_frames(request.pixel_frames)
    tokens = rows * columns * batch
    cache = 2 * spec.layers * cached_frames * tokens * width * size
    activations = ACTIVATION_COPIES * frames * tokens * width * 4
    channels = model.vae.config.base_dim * 4
    pixels = request.height * request.width * spec.temporal_stride * channels * 4
    return cache + activations + pixels


def check_memory(model: Model, cached_frames: int, request: Request) -> None:
    """Refuse a run that can't fit.

    Raises:
        UserError: with the memory needed against the memory there.
    """
    needed = needed_bytes(model, cached_frames, request)
    there = available_bytes(model.transformer.device)
    if needed > there:
        raise UserError(
            f"{request.width}x{request.height} needs about {needed / 2**30:.1f} GiB besides the "
            f"weights, but {there / 2**30:.1f} GiB are free on {model.transformer.device}; "
            "take a smaller size or window"
        )
