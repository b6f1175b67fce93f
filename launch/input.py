"""The video that a run is made from."""

from __future__ import annotations

from collections.abc import Iterable

from longtake.launch.draft import Draft
from longtake.parallel.mesh import Mesh
from longtake.runtime.encoding import encoded
from longtake.runtime.footage import load_video
from longtake.runtime.live import Live
from longtake.runtime.model import Model
from longtake.runtime.source import Frame, SharedSource, at_rate


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
    frames = open_frames(draft, frames, live)
    assert frames is not None
    ahead = iter if live is None else live.one_ahead
    return SharedSource(mesh, encoded(frames, model, draft.request, draft.noise, mixing, ahead))


def open_frames(
    draft: Draft, frames: Iterable[Frame] | None, live: Live | None
) -> Iterable[Frame] | None:
    """The frames of a run's input, at its rate; None without one. As of `open_source`."""
    punctual = frames is None
    if draft.settings.input_video is not None:
        decoded, rate = load_video(draft.settings.input_video)
        frames = at_rate(decoded, rate, draft.request.fps)
    if frames is None or live is None:
        return frames
    return live.camera(frames, punctual)
