"""What is asked for, in words of Python or of the shell, as settings and cues."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longtake.launch.catalogue import choose
from longtake.launch.config import compose_settings
from longtake.launch.settings import FewStepSettings, Settings
from longtake.runtime.footage import video_length
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue

Prompt = str | Sequence[tuple[float, str]]
Size = str | tuple[int, int]


def read_prompt(prompt: Prompt) -> list[Cue]:
    """One prompt for all of the video, or (second, text) pairs."""
    if isinstance(prompt, str):
        return [Cue(0.0, prompt)]
    return [Cue(at, text) for at, text in prompt]


def read_prompts_at(prompt: str, later: Sequence[str]) -> list[tuple[float, str]]:
    """The first prompt, and SECONDS=TEXT for each one after it.

    Raises:
        UserError: one of them is not of that form.
    """
    cues = [(0.0, prompt)]
    for text in later:
        seconds, equals, words = text.partition("=")
        try:
            at = float(seconds)
        except ValueError:
            at = math.nan
        if not equals or not math.isfinite(at):
            raise UserError(
                f"--prompt-at must be SECONDS=TEXT, such as 20='a blue square'; got {text!r}"
            )
        cues.append((at, words))
    return cues


def read_settings(
    *,
    model: str | Path,
    strategy: str | None,
    steps: int | None,
    size: Size | None,
    settings: Sequence[str],
    workers: int | None = None,
    plan: str | None = None,
    cluster: str | None = None,
    **values: Any,
) -> Settings:
    """Compose the settings; `values` are those of keys at the top, `workers`, `plan` and `cluster`
    those of `parallel`, None where nothing is asked.

    Raises:
        UserError: something is not known, or of the wrong type; an input video can't be read, or is
            shorter than asked.
    """
    name, folder = choose(str(model))
    if folder is not None:
        settings = [f"model.folder={json.dumps(str(folder))}", *settings]
    shared = {"workers": workers, "plan": plan, "cluster": cluster}
    told = (f"parallel.{key}={value}" for key, value in shared.items() if value is not None)
    settings = [*settings, *told]
    if size is not None and not isinstance(size, str):
        size = "x".join(map(str, size))
    composed = compose_settings(
        {"model": name, "strategy": strategy}, settings, {"size": size, **values}
    )
    asked = values.get("seconds") is not None or any(s.startswith("seconds=") for s in settings)
    composed = _settle_length(composed, asked)
    return composed if steps is None else _with_steps(composed, steps)


def _settle_length(settings: Settings, asked: bool) -> Settings:
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


def _with_steps(settings: Settings, steps: int) -> Settings:
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    sampler = settings.sampler
    if isinstance(sampler, FewStepSettings):
        spread = tuple(1000 * (steps - step) / steps for step in range(steps))
        return replace(settings, sampler=replace(sampler, steps=spread))
    return replace(settings, sampler=replace(sampler, steps=steps))
