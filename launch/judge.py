"""Measure a video against the prompts that its manifest tells, or another one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from longtake.launch.config import settings_from
from longtake.launch.manifest import read_manifest
from longtake.launch.places import default_run_dir
from longtake.launch.plan import count_steps
from longtake.runtime import world
from longtake.runtime.evaluate import Report, causal_block_starts, evaluate
from longtake.runtime.footage import load_video
from longtake.scheduler.request import Cue
from longtake.scheduler.schedule import HasSeams

logger = logging.getLogger(__name__)


def judge(video: Path, prompt: str | None = None) -> Report:
    """Evaluate a video file.

    Without `prompt`, the prompts are those of the run beside the video; where there is none, or
    where they are no sentences of the small model's world, only what needs no prompt is measured.

    Raises:
        UserError: no such video, or a given prompt that can't be judged.
    """
    frames, fps = load_video(video)
    manifest = read_manifest(default_run_dir(video))
    cues = _known(manifest) if prompt is None else [Cue(0.0, prompt)]
    return evaluate(frames, cues, fps, None if manifest is None else _block_starts(manifest))


def _known(manifest: dict[str, Any] | None) -> list[Cue]:
    cues = [] if manifest is None else [Cue(cue["at"], cue["text"]) for cue in manifest["cues"]]
    try:
        for cue in cues:
            world.parse_caption(cue.text)
    except ValueError as error:
        logger.warning("judged without a prompt: %s", error)
        return []
    if not cues:
        logger.warning("judged without a prompt: there is no run beside the video; give --prompt")
    return cues


def _block_starts(manifest: dict[str, Any]) -> list[int]:
    """The frames with which the blocks after the first start; other seams, where there are such."""
    if not manifest["runs"]:
        return []
    settings = settings_from(manifest["config"])
    strategy = settings.strategy.strategy_of(count_steps(settings))
    starts = causal_block_starts(manifest["runs"][-1]["frames"], 1)  # of latent frames, from 1 on
    frames, block = len(starts) + 1, settings.model.block_frames
    every = range(block, frames, block)
    seams = strategy.seams(frames) if isinstance(strategy, HasSeams) else every
    return [starts[frame - 1] for frame in seams]
