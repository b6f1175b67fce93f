"""The video that a run is made from."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from longtake.launch.draft import Draft
from longtake.parallel.mesh import Mesh
from longtake.runtime.footage import load_video
from longtake.runtime.live import Live
from longtake.runtime.model import Model
from longtake.runtime.source import Frame, SharedSource, VideoSource, at_rate
from longtake.runtime.wan_vae import EncodeStream


def open_source(
    draft: Draft,
    mesh: Mesh,
    model: Model | None,
    frames: Iterable[Frame] | None = None,
    live: Live | None = None,
) -> SharedSource | None:
    """What blocks begin from, where that isn't noise alone. Only rank 0 has a `model`.

    `frames` are the input, (H, W, 3) uint8 RGB at the run's rate, None for those of its file; with
    `live` they come as that has them.

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
    punctual = frames is None
    if frames is None:
        assert draft.settings.input_video is not None
        decoded, rate = load_video(draft.settings.input_video)
        frames = at_rate(decoded, rate, request.fps)
    if live is not None:
        frames = live.camera(frames, punctual)
    encode = partial(EncodeStream(model.vae).encode, normalise=mixing.normalise)
    size = (request.width, request.height)
    device = model.transformer.device
    source = VideoSource(
        frames,
        lambda pixels: encode(pixels.to(device)),
        draft.noise,
        draft.spec,
        size,
        mixing,
        iter if live is None else live.one_ahead,
    )
    return SharedSource(mesh, source)
