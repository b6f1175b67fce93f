"""Live runs: an input video at its real rate, and by when its frames are due."""

from __future__ import annotations

from longtake.launch.draft import Draft
from longtake.runtime.live import Live
from longtake.scheduler.errors import UserError
from longtake.scheduler.pacing import least_latency
from longtake.scheduler.plan import Plan

BLOCKS_KEPT = 2  # of frames that came and are not taken yet, before the camera has to wait


def make_live(draft: Draft, frames_given: bool = False) -> Live | None:
    """The clock of a live run, None of any other; `frames_given`: the input is no file.

    Raises:
        UserError: there is no input, or it can't be shown as soon as that.
    """
    settings, request, spec = draft.settings, draft.request, draft.spec
    if not settings.live:
        if settings.latency is not None:
            raise UserError("latency is that of a live run; set live as well")
        return None
    if settings.input_video is None and not frames_given:
        raise UserError("a live run is made from an input video; say which with --input-video FILE")
    block = spec.block_frames * spec.temporal_stride
    least = least_latency(draft.schedule(), Plan(draft.degrees, 2 if request.guidance > 1 else 1))
    budget = least + block / request.fps if settings.latency is None else settings.latency
    if budget <= least:
        raise UserError(
            f"a latency of {budget:g} s can't be kept: with {draft.schedule().steps} steps and "
            f"blocks of {spec.block_frames} latent frames, frames come out {least:.2f} s after "
            "theirs if nothing takes any time; set steps or model.block_frames lower, or latency "
            "higher"
        )
    return Live(request.fps, budget, BLOCKS_KEPT * block, least=least)
