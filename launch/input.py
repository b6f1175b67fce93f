"""The video that a run is made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from longtake.launch.draft import Draft
from longtake.launch.settings import Settings
from longtake.parallel.mesh import Mesh
from longtake.runtime.footage import load_video, video_length
from longtake.runtime.model import Model
from longtake.runtime.source import Frame, SharedSource, VideoSource, at_rate
from longtake.runtime.wan_vae import EncodeStream
from longtake.scheduler.errors import UserError


def settle_length(settings: Settings, asked: bool) -> Settings:
    """Make an input video's path hold from anywhere, and the run no longer than it is.

    `asked`: the length of the run was asked for.

    Raises:
        UserError: there is no such video, or it is shorter than that.
    """
    if settings.input_video is None:
        return settings
    path = Path(settings.input_video).absolute()
    count, rate = video_length(path)
    fps = settings.model.fps if settings.fps is None else settings.fps
    seconds = -(-count * fps // rate) / fps
    if asked and settings.seconds > seconds:
        raise UserError(
            f"{path} is {seconds:g} s long, so the run can't be {settings.seconds:g} s long"
        )
    seconds = settings.seconds if asked else seconds
    return replace(settings, input_video=str(path), seconds=seconds)


def open_source(
    draft: Draft, mesh: Mesh, model: Model | None, frames: Iterable[Frame] | None = None
) -> SharedSource | None:
    """What blocks begin from, where that isn't noise alone. Only rank 0 has a `model`.

    `frames` are the input, (H, W, 3) uint8 RGB at the run's rate, None for those of its file.

    Raises:
        UserError: the file can't be read.
    """
    if draft.settings.input_video is None and frames is None:
        return None
    if model is None:
        return SharedSource(mesh, None)
    mixing = draft.settings.strategy.mixing
    assert mixing is not None
    request = draft.request
    if frames is None:
        assert draft.settings.input_video is not None
        decoded, rate = load_video(draft.settings.input_video)
        frames = at_rate(decoded, rate, request.fps)
    encode = partial(EncodeStream(model.vae).encode, normalise=mixing.normalise)
    size = (request.width, request.height)
    device = model.transformer.device
    source = VideoSource(
        frames, lambda pixels: encode(pixels.to(device)), draft.noise, draft.spec, size, mixing
    )
    return SharedSource(mesh, source)
