"""Live runs, from a file and from frames: what is told of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.launch.api import generate, resume, stream
from longtake.runtime.video import Mp4Writer
from longtake.scheduler.errors import UserError

PROMPT = "a large red circle bouncing around slowly on a gray background"
SMALL: dict[str, Any] = {"strategy": "stream", "steps": 1, "size": "32x32"}
LEAST = 20 / 32  # seconds until the two blocks that are made together are there, at 32 a second


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 frames, 32 a second."""
    path = tmp_path_factory.mktemp("given") / "given.mp4"
    writer = Mp4Writer(path, fps=32, height=32, width=32)
    writer.write(np.random.default_rng(1).integers(0, 255, (36, 32, 32, 3), np.uint8))
    writer.close()
    return path


def test_a_live_run_tells_how_late_its_frames_came(
    given: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    asked = ("--live", "--strategy", "stream", "--steps", 1, "--size", "32x32", "--fps", 32)
    places = ("--input-video", given, "--out", tmp_path / "out.mp4")
    told = cli("generate", PROMPT, *places, *asked, "--json")
    assert told.exit_code == 0, told.output
    events = {e["event"]: e for e in map(json.loads, told.stdout.splitlines())}
    report = events["live"]
    assert report["frames"] == 36 and 0 <= report["late"] <= 36
    assert report["budget"] == pytest.approx(LEAST + 12 / 32)
    assert report["first_frame"] >= LEAST and report["latency_p50"] <= report["latency_p99"]
    run_dir = tmp_path / "out.run"
    (run,) = json.loads((run_dir / "manifest.json").read_text())["runs"]
    assert run["live"].items() <= report.items()
    assert "live" not in resume(run_dir).manifest  # it is done, and nothing is told twice


def test_a_live_stream_of_frames_tells_it_while_it_runs() -> None:
    pictures = (np.full((32, 32, 3), i, np.uint8) for i in range(33))
    with stream(PROMPT, input_video=pictures, live=True, fps=32, **SMALL) as frames:
        next(frames)
        first = frames.live
        rest = len(list(frames))
    assert first is not None and first.first_frame >= LEAST
    assert frames.live is not None and frames.live.frames == 1 + rest == 33


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"live": True}, "a live run is made from an input video; say which with --input-video"),
        ({"settings": ["latency=2"]}, "latency is that of a live run; set live as well"),
        (
            {"live": True, "input_video": True, "settings": ["latency=0.5"]},
            r"a latency of 0.5 s can't be kept: with 1 steps and blocks of 3 .* come out 0.62 s",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    asked: dict[str, Any], complaint: str, given: Path, tmp_path: Path
) -> None:
    wanted = {"out": tmp_path / "a.mp4", "fps": 32, **SMALL, **asked}
    if "input_video" in wanted:
        wanted["input_video"] = given
    with pytest.raises(UserError, match=complaint):
        generate(PROMPT, **wanted)
    assert list(tmp_path.iterdir()) == []
