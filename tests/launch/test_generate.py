"""A video from start to end: the file, its frames as pictures, and the manifest beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import longtake
from longtake.launch.api import generate
from longtake.launch.devices import share_cores
from longtake.runtime.footage import load_video
from longtake.runtime.progress import Progress

PROMPT = "a large red circle bouncing around slowly on a gray background"
OTHER_PROMPT = "a small blue square standing still on a pink background"

ReadVideo = Callable[[Path], tuple[int, float, tuple[int, int]]]
ReadBlocks = Callable[[Path], dict[str, str]]


def test_video_has_the_frames_asked_for(whole_run: Path, read_video: ReadVideo) -> None:
    assert read_video(whole_run.with_suffix(".mp4")) == (64, 16.0, (64, 64))
    assert sorted(file.name for file in whole_run.parent.iterdir()) == ["video.mp4", "video.run"]


def test_manifest_tells_how_it_was_made(whole_run: Path) -> None:
    manifest = json.loads((whole_run / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["request"]["seed"] == 5 and manifest["request"]["seconds"] == 4.0
    cues = [{"at": 0.0, "text": PROMPT}, {"at": 2.0, "text": OTHER_PROMPT}]
    assert manifest["request"]["cues"] == manifest["cues"] == cues
    config = manifest["config"]
    assert (config["device"], config["dtype"]) == ("cpu", "float32")
    assert (config["size"], config["fps"], config["sampler"]["steps"]) == ("64x64", 16, 2)
    assert manifest["labels"] == {"strategy": "lossy", "plan": "exact", "dtype": "exact"}
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["versions"]["longtake"] == longtake.__version__
    assert {len(digest) for digest in manifest["weights"].values()} == {64}
    assert manifest["output"]["video"] == "../video.mp4"
    (run,) = manifest["runs"]
    assert (run["frames"], run["blocks_made"], run["blocks_restored"]) == (64, 6, 0)
    counts = {name: action["count"] for name, action in run["timeline"].items()}
    assert counts["denoise"] == 6 * 2 and counts["encode"] == 2 and counts["recache"] == 1


def test_other_sizes_dtypes_frames_and_strategies(tmp_path: Path, read_video: ReadVideo) -> None:
    progress: list[Progress] = []
    result = generate(
        PROMPT,
        seconds=0.5,
        out=tmp_path / "a.mp4",
        run_dir=tmp_path / "kept",
        frames_dir=tmp_path / "frames",
        size=(96, 64),
        fps=20,
        steps=1,
        strategy="bidirectional",
        dtype="bfloat16",
        settings=["guidance=2", "negative=a, b"],
        on_progress=progress.append,
    )
    assert result.path == tmp_path / "a.mp4" and result.run_dir == tmp_path / "kept"
    assert result.finished and result.frames == 10
    assert read_video(result.path) == (10, 20.0, (96, 64))
    labels = {"strategy": "exact", "plan": "exact", "dtype": "rounding"}
    assert result.manifest["labels"] == labels
    assert progress[-1].frames == progress[-1].total_frames == 10
    pictures = sorted((tmp_path / "frames").iterdir())
    assert [picture.name for picture in pictures] == [f"{i:06}.png" for i in range(10)]
    shown = next(iter(load_video(result.path)[0]))
    drawn = np.asarray(Image.open(pictures[0]))
    assert drawn.shape == (64, 96, 3)
    assert np.abs(drawn.astype(int) - shown).mean() < 20  # one is compressed


def test_overwrite_starts_anew(tmp_path: Path, read_blocks: ReadBlocks) -> None:
    request: dict[str, Any] = {"seconds": 0.5, "steps": 1, "out": tmp_path / "a.mp4"}
    first = read_blocks(generate(PROMPT, **request, seed=1).run_dir)
    result = generate(PROMPT, **request, seed=2, overwrite=True)
    assert result.manifest["request"]["seed"] == 2
    assert read_blocks(result.run_dir) != first
    again = generate(PROMPT, **request, seed=1, overwrite=True)
    assert read_blocks(again.run_dir) == first


def test_steps_of_the_few_step_sampler_are_spread(tmp_path: Path) -> None:
    sampler = generate(
        PROMPT, seconds=0.5, steps=2, out=tmp_path / "a.mp4", settings=["sampler=few-step"]
    ).manifest["config"]["sampler"]
    assert sampler["steps"] == [1000.0, 500.0]


@pytest.mark.parametrize("threads", [1, 64])
def test_half_of_the_cores_at_most(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8))
    try:
        torch.set_num_threads(threads)
        share_cores(torch.device("cpu"))
        assert torch.get_num_threads() == min(threads, 4)
    finally:
        torch.set_num_threads(before)
