"""Paths and formats that no video can have are refused before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longtake.runtime.video import Mp4Writer, check_output
from longtake.scheduler.errors import UserError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sea.mov", r"the suffix is '\.mov', legal is '\.mp4'"),
        ("sea", r"the suffix is '', legal is '\.mp4'"),
        ("folder.mp4", "it is a folder"),
        ("there.mp4", "already exists"),
        ("missing/sea.mp4", "there is no folder"),
        ("there.mp4/sea.mp4", "there is no folder"),
        ("a" * 300 + ".mp4", "File name too long"),
        ("/proc/sea.mp4", "cannot write /proc/sea.mp4"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "there.mp4").touch()
    with pytest.raises(UserError, match=message) as caught:
        check_output(tmp_path / name, overwrite=False)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["folder.mp4", "there.mp4"]


def test_paths_that_can_be_written(tmp_path: Path) -> None:
    check_output(tmp_path / "sea.MP4", overwrite=False)
    (tmp_path / "sea.mp4").touch()
    check_output(tmp_path / "sea.mp4", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["sea.mp4"]


@pytest.mark.parametrize(
    ("fps", "height", "width", "message"),
    [
        (16, 480, 833, "833x480.*even width and height, such as 834x480"),
        (16, 481, 832, "832x481.*even width and height, such as 832x482"),
        (16, 0, 32, "32x0.*such as 32x2"),
        (0, 32, 32, "the frame rate is 0, legal is a whole number from 1"),
    ],
)
def test_formats_that_h264_cannot_hold(
    tmp_path: Path, fps: int, height: int, width: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Mp4Writer(tmp_path / "sea.mp4", fps=fps, height=height, width=width)
    assert sorted(os.listdir(tmp_path)) == []
