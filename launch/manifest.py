"""The manifest beside a video: what was asked, what ran, and enough to make it again."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

import longtake
from longtake.launch.config import settings_from
from longtake.launch.draft import Draft, make_draft
from longtake.launch.surroundings import ALL_HERE, Hosts
from longtake.runtime.engine import Outcome
from longtake.runtime.model import ModelConfig
from longtake.runtime.weight_digest import weights_digest
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue

logger = logging.getLogger(__name__)

_IDENTITY = ("request", "config", "weights", "input")  # what every bit of the video follows from
_KEYS = {
    *_IDENTITY,
    "status",
    "threads",
    "versions",
    "output",
    "cues",
    "plan",
    "runs",
    "fingerprint",
}


def new_manifest(draft: Draft, output: Mapping[str, Any] | None) -> dict[str, Any]:
    """The manifest of a run that begins; `output` tells its files, None for a stream."""
    schedule = draft.schedule()
    manifest = {
        "status": "running",
        "request": asdict(draft.request),
        "config": asdict(draft.settings),
        "blocks": schedule.blocks,
        "labels": {
            "strategy": draft.strategy.label,
            "plan": "exact",  # however the work is shared out, decoding included
            "dtype": "exact" if draft.dtype == torch.float32 else "rounding",
        },
        "plan": {
            "degrees": draft.degrees.describe(),
            "decode": draft.decode.describe(),
            "why": draft.why,
        },
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "weights": digests(draft.config),
        "input": input_digest(draft),
        "output": output,
        "cues": [asdict(cue) for cue in draft.request.cues],
        "runs": [],
    }
    return {**manifest, "fingerprint": _fingerprint(manifest)}


def ended(
    manifest: Mapping[str, Any], outcome: Outcome, cues: list[Cue], finished: bool
) -> dict[str, Any]:
    """What to change in a manifest when a process has ended its part of a run.

    `cues` are the prompts as they were shown, those of live switches included.
    """
    run = {
        "finished": finished,
        "seconds": round(outcome.timeline.elapsed, 3),
        "frames": outcome.frames,
        "blocks_made": outcome.blocks_made,
        "blocks_restored": outcome.blocks_restored,
        "evaluations": outcome.evaluations,
        "timeline": outcome.timeline.summary(),
    }
    if outcome.live is not None:
        run["live"] = outcome.live.to_dict()
    if outcome.moves:
        run["moves"] = [{"block": block, "layers": layers} for block, layers in outcome.moves]
    return {
        "status": "finished" if finished else "stopped",
        "cues": [asdict(cue) for cue in cues],
        "runs": [*manifest["runs"], run],
    }


def draft_from(
    run_dir: Path, manifest: Mapping[str, Any], hosts: Hosts = ALL_HERE, warm: bool = False
) -> Draft:
    """The run that a manifest describes, checked again on this machine; see `make_draft`.

    Raises:
        UserError: the manifest was changed, or can't be followed here; the weights or the input
            video are others.
    """
    _check_keys(run_dir, manifest)
    if manifest["fingerprint"] != _fingerprint(manifest):
        raise UserError(
            f"{run_dir / 'manifest.json'} was changed since the run began; its blocks are those of "
            "another request"
        )
    request = manifest["request"]
    cues = [Cue(cue["at"], cue["text"]) for cue in request["cues"]]
    settings = settings_from(manifest["config"])
    draft = make_draft(settings, cues, request["seconds"], hosts, warm)
    draft = replace(draft, why=manifest["plan"]["why"])
    for part, digest in digests(draft.config).items():
        if digest != manifest["weights"].get(part):
            raise UserError(
                f"{run_dir} is the run of other weights: the {part} at "
                f"{draft.config.layout().weights[part]} is not the one that it began with"
            )
    if input_digest(draft) != manifest["input"]:
        raise UserError(
            f"{draft.settings.input_video} is not the video any more that {run_dir} is made from"
        )
    for name, version in versions().items():
        began = manifest["versions"].get(name)
        if began != version:
            logger.warning(
                "this run began with %s %s and goes on with %s; the rest may differ in rounding",
                name,
                began,
                version,
            )
    return draft


def read_manifest(run_dir: Path) -> dict[str, Any] | None:
    """The manifest of a run, without touching the run; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = run_dir / "manifest.json"
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path} is damaged: it is not the manifest of a run")
    _check_keys(run_dir, manifest)
    return manifest


def _check_keys(run_dir: Path, manifest: Mapping[str, Any]) -> None:
    missing = sorted(_KEYS - manifest.keys())
    if missing:
        raise UserError(f"{run_dir / 'manifest.json'} is damaged: it lacks {', '.join(missing)}")


def digests(config: ModelConfig) -> dict[str, str]:
    """What tells the weights of a model's parts from others."""
    return {part: weights_digest(source) for part, source in config.layout().weights.items()}


def input_digest(draft: Draft) -> str | None:
    """What tells the input video from others; None without one.

    Raises:
        UserError: it can't be read.
    """
    if draft.settings.input_video is None:
        return None
    path = Path(draft.settings.input_video)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"the input video {path} can't be read: {error.strerror}") from error


def versions() -> dict[str, str]:
    """Of all that has a say in the bits of a video."""
    return {
        "longtake": longtake.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    told = json.dumps({key: manifest[key] for key in _IDENTITY}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
