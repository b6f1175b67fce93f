"""Measure a video against the prompts that its manifest tells, or another one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from longtake.launch.manifest import read_manifest
from longtake.launch.places import default_run_dir
from longtake.runtime import world
from longtake.runtime.evaluate import Report, causal_block_starts, evaluate
from longtake.runtime.footage import load_video
from longtake.scheduler.request import Cue
from longtake.scheduler.strategies.clip import Clip, Scopes
from longtake.scheduler.strategies.windows import Windows

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
    """The frames with which the blocks after the first start."""
    config = manifest["config"]
    if config["strategy"]["kind"] == "bidirectional" or not manifest["runs"]:
        return []
    frames = manifest["runs"][-1]["frames"]
    told, each = config["strategy"], causal_block_starts(frames, 1)
    if told["kind"] == "clip":
        clips = Clip(Scopes(), told["clip_frames"], told["clips"])
        return [each[frame - 1] for frame in clips.seams(len(each) + 1)]
    if told["kind"] == "windows":
        windows = Windows(told["length"], told["stride"])
        return [each[frame - 1] for frame in windows.seams(len(each) + 1)]
    if config["strategy"]["kind"] == "dual":
        each, context = config["strategy"]["frames"], config["strategy"]["context"]
        return causal_block_starts(frames, each, more_in_first=context)
    return causal_block_starts(frames, config["model"]["block_frames"])
