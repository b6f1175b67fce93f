"""A video is read while it is written, and again by a run that is resumed: each frame once."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np

from longtake.runtime.fragments import GrowingVideo
from longtake.runtime.video import Mp4Writer

FPS, SIDE = 16, 64
STEP = 1024  # of the time base, from frame to frame


def noise(start: int, count: int) -> np.ndarray:
    """Frames by number; the same each time."""
    draws = [np.random.default_rng(number) for number in range(start, start + count)]
    return np.stack([draw.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8) for draw in draws])


def times(data: bytes) -> list[int]:
    """Of the frames in a file, in units of its time base."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.pts or 0 for frame in container.decode(video=0)]


def writer_at(path: Path) -> Mp4Writer:
    return Mp4Writer(path, fps=FPS, height=SIDE, width=SIDE)


def test_every_frame_is_handed_on_once(tmp_path: Path) -> None:
    growing, taken = GrowingVideo(tmp_path / "a.part.mp4", FPS), bytearray()
    assert growing.take() == b"" and not growing.opened
    first = writer_at(tmp_path / "a.mp4")
    for start in range(0, 50, 10):
        first.write(noise(start, 10))
        taken += growing.take()
    assert times(bytes(taken))  # plays so far
    first.abort()  # leaves a fragment that was cut short
    taken += growing.take()
    again = writer_at(tmp_path / "a.mp4")
    for start in range(0, 100, 10):
        again.write(noise(start, 10))
        taken += growing.take(enough=1)
    again.close()
    while piece := growing.take(over=True):
        taken += piece
    growing.close()
    assert growing.frames == 100
    assert times(bytes(taken)) == list(range(0, 100 * STEP, STEP))


def test_a_file_that_was_begun_again_and_finished_unseen(tmp_path: Path) -> None:
    first = writer_at(tmp_path / "a.mp4")
    growing = GrowingVideo(first.partial, FPS)
    first.write(noise(0, 40))
    growing.take()
    first.abort()
    again = writer_at(tmp_path / "a.mp4")
    again.write(noise(0, 64))
    again.close()  # what grew has no name any more
    growing.take(over=True)
    growing.close()
    assert growing.frames < 64  # and whoever reads can tell
