"""Video to video: from a file by the command line, from frames by the API, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.launch.api import generate, resume, stream
from longtake.runtime.footage import load_video
from longtake.runtime.video import Mp4Writer
from longtake.scheduler.errors import UserError

PROMPT = "a large red circle bouncing around slowly on a gray background"
SMALL: dict[str, Any] = {"strategy": "stream", "steps": 2, "size": "32x32"}

ReadVideo = Callable[[Path], tuple[int, float, tuple[int, int]]]


def disc(frame: int, size: int = 48) -> np.ndarray:
    """A red disc that wanders over gray, (size, size, 3)."""
    rows, columns = np.mgrid[:size, :size]
    inside = (rows - size / 2) ** 2 + (columns - 10 - frame) ** 2 < 64
    return np.where(inside[..., None], (220, 40, 40), (120, 120, 120)).astype(np.uint8)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames, 10 a second."""
    path = tmp_path_factory.mktemp("given") / "given.mp4"
    writer = Mp4Writer(path, fps=10, height=48, width=48)
    writer.write(np.stack([disc(frame) for frame in range(20)]))
    writer.close()
    return path


def test_the_video_is_as_long_as_its_input_and_follows_it(
    given: Path, tmp_path: Path, cli: Callable[..., Any], read_video: ReadVideo
) -> None:
    out = tmp_path / "out.mp4"
    told = cli("generate", PROMPT, "--input-video", given, "--strategy", "stream", "--out", out)
    assert told.exit_code == 0, told.output
    assert read_video(out) == (32, 16.0, (64, 64))
    manifest = json.loads((tmp_path / "out.run" / "manifest.json").read_text())
    assert manifest["config"]["input_video"] == str(given) and len(manifest["input"]) == 64
    made = np.stack(list(load_video(out)[0])).astype(float)
    redness = made[..., 0] - made[..., 1]
    middles = [(r.clip(40) - 40).sum(0) @ np.arange(64) / (r.clip(40) - 40).sum() for r in redness]
    true = [(10 + frame * 10 / 16) * 64 / 48 for frame in range(32)]
    assert np.abs(np.subtract(middles, true)).mean() < 4  # pixels


def test_a_run_from_a_video_goes_on_to_the_same_bits_and_from_no_other_video(
    given: Path, tmp_path: Path, read_blocks: Callable[[Path], dict[str, str]]
) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(given.read_bytes())
    whole = generate(PROMPT, input_video=copy, out=tmp_path / "whole.mp4", **SMALL)
    cut: list[Any] = []
    with stream(PROMPT, input_video=copy, run_dir=tmp_path / "cut.run", **SMALL) as frames:
        cut += [next(frames) for _ in range(9)]
    with pytest.raises(UserError, match=r"copy.mp4 is not the video any more that .* is made from"):
        copy.write_bytes(given.read_bytes() + b" ")
        resume(tmp_path / "cut.run", out=tmp_path / "cut.mp4")
    copy.write_bytes(given.read_bytes())
    assert resume(tmp_path / "cut.run", out=tmp_path / "cut.mp4").finished
    assert read_blocks(tmp_path / "cut.run") == read_blocks(whole.run_dir)


def test_frames_go_in_as_they_are_needed_and_the_stream_ends_when_they_do() -> None:
    taken = 0

    def camera() -> Iterator[np.ndarray]:
        nonlocal taken
        for frame in range(21 + 12 * 20):
            taken += 1
            yield disc(frame % 30, 32)

    with stream(PROMPT, input_video=camera(), **SMALL) as frames:
        first = next(frames)
        assert first.shape == (32, 32, 3) and taken < 21 + 12 * 19
    with stream(PROMPT, input_video=(disc(i, 32) for i in range(30)), **SMALL) as frames:
        assert len(list(frames)) == 33  # the third block is filled up


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"strategy": "causal"}, "the strategy causal takes no input video; legal is stream"),
        ({"seconds": 3.0}, "is 2 s long, so the run can't be 3 s long"),
        ({"input_video": "nowhere.mp4"}, "there is no video at .*nowhere.mp4"),
        ({"settings": ["sampler=few-step"]}, "a first step at .* must be above the second one"),
        ({"settings": ["strategy.noise_scale=2"]}, "noise_scale must be within 0 .. 1, got 2"),
    ],
)
def test_what_cannot_be_is_refused(
    asked: dict[str, Any], complaint: str, given: Path, tmp_path: Path
) -> None:
    wanted = {"input_video": given, "out": tmp_path / "a.mp4", "strategy": "stream", **asked}
    with pytest.raises(UserError, match=complaint):
        generate(PROMPT, **wanted)
    assert list(tmp_path.iterdir()) == []


def test_a_stream_from_frames_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a stream from frames can't be kept"):
        stream(PROMPT, input_video=iter([]), run_dir=tmp_path / "run", **SMALL)
