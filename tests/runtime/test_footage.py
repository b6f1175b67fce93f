"""Video files come back as the frames that went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtake.runtime.footage import load_video, strip
from longtake.runtime.video import Mp4Writer
from longtake.scheduler.errors import UserError

LEVELS = np.linspace(20, 220, 25).round().astype(np.uint8)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """25 gray frames that get brighter, 32 wide and 16 high, 10 a second."""
    writer = Mp4Writer(tmp_path / "video.mp4", fps=10, height=16, width=32)
    writer.write(np.broadcast_to(LEVELS[:, None, None, None], (25, 16, 32, 3)))
    writer.close()
    return tmp_path / "video.mp4"


def test_frames_come_back_in_order(video: Path) -> None:
    frames, fps = load_video(video)
    assert fps == 10
    stacked = np.stack(list(frames))
    assert stacked.shape == (25, 16, 32, 3) and stacked.dtype == np.uint8
    np.testing.assert_allclose(stacked.mean(axis=(1, 2, 3)), LEVELS, atol=3)


def test_a_damaged_video_is_told_when_the_damage_is_reached(video: Path) -> None:
    whole = bytearray(video.read_bytes())
    middle = len(whole) - 40
    whole[middle:] = bytes(len(whole) - middle)
    video.write_bytes(whole)
    frames, _ = load_video(video)
    with pytest.raises(UserError, match="decoded to its end"):
        list(frames)


@pytest.mark.parametrize("content", [None, b"", b"no video at all"])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "video.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"video\.mp4"):
        load_video(path)


def test_a_picture_strip_shows_the_first_and_the_last_frame(video: Path, tmp_path: Path) -> None:
    strip(video, 4, tmp_path / "strip.png")
    picture = np.asarray(Image.open(tmp_path / "strip.png"))
    assert picture.shape == (16, 4 * 32 + 3 * 2, 3)
    tiles = picture[8, 16::34, 0]
    np.testing.assert_allclose(tiles, LEVELS[[0, 8, 16, 24]], atol=3)


@pytest.mark.parametrize("count", [0, 26])
def test_a_strip_needs_as_many_frames_as_it_shows(video: Path, tmp_path: Path, count: int) -> None:
    with pytest.raises(UserError, match="1 to 25 frames, not"):
        strip(video, count, tmp_path / "strip.png")
    assert not (tmp_path / "strip.png").exists()
