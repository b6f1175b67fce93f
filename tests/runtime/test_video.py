"""Videos play while they grow, end whole or not at all, and cost no memory for their length."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from PIL import Image

from longtake.runtime.video import Frames, Mp4Writer, PngWriter, Tee, VideoWriter
from longtake.scheduler.errors import UserError

RED = (225, 45, 45)


@pytest.fixture
def small_disk(mount_disk: Callable[[int], Path]) -> Path:
    """A file system of 256 KiB."""
    return mount_disk(256)


def flat(
    frames: int, color: tuple[int, int, int] = RED, height: int = 32, width: int = 48
) -> Frames:
    return np.full((frames, height, width, 3), color, dtype=np.uint8)


def noise(frames: int, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)


def ramp(start: int, frames: int) -> Frames:
    """Gray frames whose brightness tells their number, up to 200."""
    grays = np.arange(start, start + frames, dtype=np.uint8) + 20
    return np.broadcast_to(grays[:, None, None, None], (frames, 32, 48, 3))


class Video(NamedTuple):
    fps: Fraction | None
    seconds: float
    size: tuple[int, int]
    times: list[float]
    frames: list[Frames]
    colors: tuple[int, ...]


def read(path: Path) -> Video:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert container.duration is not None
        seconds = container.duration / av.time_base
        decoded = list(container.decode(stream))
        return Video(
            stream.average_rate,
            seconds,
            (stream.height, stream.width),
            [float(frame.time) for frame in decoded],
            [frame.to_ndarray(format="rgb24") for frame in decoded],
            (codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc),
        )


def boxes(path: Path) -> list[str]:
    """The top-level boxes of an MP4 file."""
    data, at, names = path.read_bytes(), 0, []
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode())
        at += int.from_bytes(data[at : at + 4], "big")
    assert at == len(data)
    return names


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_minute_plays_while_it_grows_and_after(tmp_path: Path) -> None:
    path = tmp_path / "sea.mp4"
    writer = Mp4Writer(path, fps=16, height=32, width=48)
    for block in range(80):
        writer.write(ramp(12 * block % 200, 12))
        if block == 44:
            growing = read(writer.partial)
            assert not path.exists()
    writer.close()
    finished = read(path)
    for video in (growing, finished):
        assert video.fps == 16
        assert video.size == (32, 48)
        assert abs(video.seconds - len(video.frames) / 16) < 1e-3
        assert video.times == [index / 16 for index in range(len(video.frames))]
    assert 540 - 16 <= len(growing.frames) <= 540
    assert len(finished.frames) == 960
    assert finished.seconds == pytest.approx(60.0, abs=1e-3)
    assert names(tmp_path) == ["sea.mp4"]


def test_a_fragment_each_second(tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "sea.mp4", fps=8, height=32, width=48)
    seen = []
    for _ in range(33):
        writer.write(flat(1))
        seen.append(boxes(writer.partial).count("moof"))
    assert [index for index in range(1, 33) if seen[index] > seen[index - 1]] == [8, 16, 24, 32]
    writer.abort()


def test_the_finished_file_has_its_index_in_front_and_the_same_stream(tmp_path: Path) -> None:
    path = tmp_path / "sea.mp4"
    writer = Mp4Writer(path, fps=16, height=64, width=64)
    writer.write(noise(40))
    copy = tmp_path / "copy.mp4"
    writer.write(noise(1, seed=1))
    copy.write_bytes(writer.partial.read_bytes())
    writer.close()
    order = boxes(path)
    assert order.index("moov") < order.index("mdat")
    assert "moof" not in order
    growing = packets(copy)
    assert len(growing) >= 32
    assert packets(path)[: len(growing)] == growing


@pytest.mark.parametrize("frames", [1, 2, 17])
def test_short_videos_last_as_long_as_their_frames(tmp_path: Path, frames: int) -> None:
    path = tmp_path / "short.mp4"
    writer = Mp4Writer(path, fps=24, height=32, width=48)
    writer.write(ramp(0, frames))
    writer.close()
    video = read(path)
    assert video.fps == 24
    assert len(video.frames) == frames
    assert video.seconds == pytest.approx(frames / 24, abs=1e-3)


def test_frames_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "ramp.mp4"
    writer = Mp4Writer(path, fps=16, height=32, width=48, threads=2)
    for start in range(0, 100, 10):
        writer.write(ramp(start, 10))
    writer.close()
    means = [frame.mean() for frame in read(path).frames]
    assert np.abs(np.array(means) - np.arange(20, 120)).max() < 2


@pytest.mark.parametrize("color", [RED, (20, 190, 60), (30, 60, 230), (255, 255, 255), (0, 0, 0)])
def test_colors_do_not_shift(tmp_path: Path, color: tuple[int, int, int]) -> None:
    path = tmp_path / "flat.mp4"
    writer = Mp4Writer(path, fps=16, height=32, width=48)
    writer.write(flat(20, color))
    writer.close()
    video = read(path)
    assert np.abs(np.stack(video.frames).astype(int) - np.array(color)).max() <= 4
    assert video.colors == (1, 1, 1, 1)  # limited range; BT.709 matrix, primaries and transfer


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "sea.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(UserError, match="already exists"):
        Mp4Writer(path, fps=16, height=32, width=48)
    writer = Mp4Writer(path, fps=16, height=32, width=48, overwrite=True)
    writer.write(flat(3))
    assert path.read_bytes() == b"precious"
    writer.close()
    assert len(read(path).frames) == 3


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "sea.mp4"
    writer = Mp4Writer(path, fps=16, height=32, width=48)
    writer.write(flat(3))
    path.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"this video is .*sea\.part\.mp4"):
        writer.close()
    assert path.read_bytes() == b"precious"
    assert len(read(writer.partial).frames) == 3


def test_abort_keeps_what_is_there(tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "sea.mp4", fps=16, height=32, width=48)
    writer.write(ramp(0, 21))
    writer.abort()
    writer.close()
    assert names(tmp_path) == ["sea.part.mp4"]
    assert len(read(writer.partial).frames) == 21
    again = Mp4Writer(tmp_path / "sea.mp4", fps=16, height=32, width=48)
    again.write(ramp(0, 5))
    again.close()
    assert names(tmp_path) == ["sea.mp4"]
    assert len(read(tmp_path / "sea.mp4").frames) == 5


def test_a_killed_writer_leaves_a_file_that_plays(tmp_path: Path) -> None:
    script = f"""
import os, pathlib, signal
import numpy as np
from longtake.runtime.video import Mp4Writer
writer = Mp4Writer(pathlib.Path({str(tmp_path / "sea.mp4")!r}), fps=8, height=32, width=48)
writer.write(np.zeros((20, 32, 48, 3), np.uint8))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert names(tmp_path) == ["sea.part.mp4"]
    assert len(read(tmp_path / "sea.part.mp4").frames) == 16


def test_a_video_without_frames_is_no_video(tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "sea.mp4", fps=16, height=32, width=48)
    with pytest.raises(ValueError, match="no frame was written"):
        writer.close()
    Mp4Writer(tmp_path / "sea.mp4", fps=16, height=32, width=48).abort()
    assert names(tmp_path) == []


def test_names_that_look_like_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = Mp4Writer(Path("pipe:%d sea.mp4"), fps=16, height=32, width=48)
    writer.write(flat(2))
    writer.close()
    assert names(tmp_path) == ["pipe:%d sea.mp4"]


@pytest.mark.parametrize(
    "frames", [flat(2)[0], flat(2, height=48), flat(2).astype(np.float32), flat(2)[..., :2]]
)
def test_frames_of_another_kind_are_refused(tmp_path: Path, frames: Frames) -> None:
    writer = Mp4Writer(tmp_path / "sea.mp4", fps=16, height=32, width=48)
    with pytest.raises(ValueError, match=r"frames must be \(n, 32, 48, 3\) uint8"):
        writer.write(frames)
    writer.abort()
    with pytest.raises(ValueError, match="is closed"):
        writer.write(flat(1))


def test_a_disk_that_fills_while_the_video_grows(small_disk: Path) -> None:
    writer = Mp4Writer(small_disk / "sea.mp4", fps=16, height=64, width=64)
    written = 0
    with pytest.raises(UserError, match="No space left on device; finished blocks") as caught:
        for block in range(100):
            writer.write(noise(12, seed=block))
            written += 12
    assert "sea.part.mp4" in str(caught.value)
    assert "\n" not in str(caught.value)
    writer.abort()
    writer.close()
    assert names(small_disk) == ["sea.part.mp4"]
    assert written - 16 <= len(read(writer.partial).frames) <= written + 12


def test_a_disk_too_full_to_finish_keeps_the_whole_video(small_disk: Path) -> None:
    writer = Mp4Writer(small_disk / "sea.mp4", fps=16, height=64, width=64)
    for block in range(5):
        writer.write(noise(12, seed=block))
    with pytest.raises(UserError, match=r"cannot write .*sea\.mp4: No space left on device"):
        writer.close()
    assert names(small_disk) == ["sea.part.mp4"]
    assert len(read(writer.partial).frames) == 60


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    script = f"""
import pathlib
import numpy as np
from longtake.runtime.video import Mp4Writer
writer = Mp4Writer(pathlib.Path({str(tmp_path / "long.mp4")!r}), fps=16, height=64, width=64)
pixels = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
for block in range(1, 301):
    writer.write(pixels)
    if block in (50, 300):
        print(pathlib.Path("/proc/self/statm").read_text().split()[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    after_500, after_3000 = map(int, done.stdout.split())
    growth = (after_3000 - after_500) * os.sysconf("SC_PAGE_SIZE")
    encoded = (tmp_path / "long.part.mp4").stat().st_size
    assert growth < encoded / 4  # the raw frames are five times as many bytes as that file


def test_png_frames(tmp_path: Path) -> None:
    writer = PngWriter(tmp_path / "frames")
    first, second = noise(2, seed=1), noise(3, seed=2)
    writer.write(first)
    writer.write(second)
    writer.close()
    assert names(tmp_path / "frames") == [f"00000{index}.png" for index in range(5)]
    for index, pixels in enumerate(np.concatenate([first, second])):
        with Image.open(tmp_path / "frames" / f"00000{index}.png") as image:
            assert np.array_equal(np.asarray(image), pixels)


def test_png_frames_of_another_video_are_kept_or_all_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    PngWriter(folder).write(noise(4))
    (folder / "cover.png").touch()
    with pytest.raises(UserError, match="already holds 4 frames"):
        PngWriter(folder)
    PngWriter(folder, overwrite=True).write(noise(2))
    assert names(folder) == ["000000.png", "000001.png", "cover.png"]


def test_png_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "missing" / "frames"):
        with pytest.raises(UserError, match="cannot write"):
            PngWriter(folder)


def test_png_on_a_full_disk(small_disk: Path) -> None:
    writer = PngWriter(small_disk / "frames")
    with pytest.raises(UserError, match="No space left on device; finished blocks are kept"):
        writer.write(noise(100))
    kept = names(small_disk / "frames")
    assert kept == [f"{index:06d}.png" for index in range(len(kept))]
    with Image.open(small_disk / "frames" / kept[-1]) as image:
        assert np.array_equal(np.asarray(image), noise(100)[len(kept) - 1])


def test_tee_feeds_all(tmp_path: Path) -> None:
    mp4 = Mp4Writer(tmp_path / "sea.mp4", fps=16, height=32, width=48)
    tee: VideoWriter = Tee([mp4, PngWriter(tmp_path / "frames")])
    tee.write(ramp(0, 4))
    tee.close()
    assert len(read(tmp_path / "sea.mp4").frames) == 4
    assert len(names(tmp_path / "frames")) == 4


def test_tee_ends_all_when_one_fails(tmp_path: Path) -> None:
    first = Mp4Writer(tmp_path / "one.mp4", fps=16, height=32, width=48)
    second = Mp4Writer(tmp_path / "two.mp4", fps=16, height=32, width=48)
    tee = Tee([first, second])
    tee.write(flat(2))
    (tmp_path / "two.mp4").touch()
    with pytest.raises(UserError, match=r"two\.mp4 was made by somebody else"):
        tee.close()
    assert len(read(tmp_path / "one.mp4").frames) == 2


def test_a_disk_that_fails_to_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full disk without the right to mount one."""
    writer = Mp4Writer(tmp_path / "sea.mp4", fps=16, height=32, width=48)
    writer.write(flat(20))

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match="finished blocks are kept, make room and resume"):
        writer.close()
    assert names(tmp_path) == ["sea.part.mp4"]
    assert len(read(writer.partial).frames) == 20
