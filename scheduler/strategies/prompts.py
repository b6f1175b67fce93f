"""Prompts of strategies whose blocks aren't all of the model's length."""

from __future__ import annotations

from collections.abc import Sequence

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request


def check_prompts(request: Request, spec: ModelSpec, starts: Sequence[int], what: str) -> None:
    """Refuse prompts that would never be seen, where they change with blocks that begin at these
    latent frames.

    Raises:
        UserError: one would not; `what` is what a block is called.
    """
    seconds = [spec.pixel_frames(start) / request.fps for start in starts]
    frames = [round(cue.at * request.fps) for cue in request.cues]
    for cue, frame, stop in zip(request.cues, frames, [*frames[1:], None], strict=True):
        begins = [spec.pixel_frames(start) for start in starts]
        if not any(frame <= at and (stop is None or at < stop) for at in begins):
            told = ", ".join(f"{at:g}" for at in seconds[:12]) + (" ..." if starts[12:] else "")
            raise UserError(
                f"the prompt at {cue.at:g} s would never be seen: prompts change where a {what} "
                f"begins, at {told} s, and none is left to it"
            )
