"""A video source over a loaded model's own VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from longtake.runtime.model import Model
from longtake.runtime.noise import Noise
from longtake.runtime.source import Frame, Mixing, Start, VideoSource
from longtake.runtime.wan_vae import EncodeStream
from longtake.scheduler.request import Request


def encoded(
    frames: Iterable[Frame],
    model: Model,
    request: Request,
    noise: Noise,
    mixing: Mixing,
    ahead: Callable[[Iterator[Start]], Iterator[Start]] = iter,
) -> VideoSource:
    """What blocks of a request begin from, given the frames of a video at its rate."""
    encode = partial(EncodeStream(model.vae).encode, normalise=mixing.normalise)
    device = model.transformer.device
    return VideoSource(
        frames,
        lambda pixels: encode(pixels.to(device)),
        noise,
        model.spec,
        (request.width, request.height),
        mixing,
        ahead,
    )
