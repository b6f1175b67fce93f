"""Video files that play while they grow, written in memory that does not grow with them."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from glob import escape
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    VideoReformatter,
)
from av.video.stream import VideoStream
from PIL import Image

from longtake.runtime.durable import disk_error, sync
from longtake.scheduler.errors import UserError

logger = logging.getLogger(__name__)

Frames = npt.NDArray[np.uint8]

# A fragment for each keyframe and no index up front: players can read what is there so far.
GROWING = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
FINISHED = {"movflags": "faststart"}
FINISHING = ".finish.mp4"  # until it has its name
# No look ahead and no reordering: a frame that went in is soon on disk, and time starts at 0.
X264 = {"crf": "16", "preset": "fast", "tune": "zerolatency"}


class VideoWriter(Protocol):
    """Takes finished frames in order; ends with exactly one of `close` and `abort`."""

    def write(self, frames: Frames) -> None:
        """Append frames, (n, H, W, 3) uint8 RGB. Raises UserError when the disk refuses them."""

    def close(self) -> None:
        """Finish the output. Raises UserError when the disk refuses it."""

    def abort(self) -> None:
        """Stop where it is and keep what is there, without finishing the output."""


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse a video path that cannot be written, before any work is spent on the video.

    Raises:
        UserError: unknown suffix, a folder, an existing file that may not be overwritten, or a
            parent folder that is missing or cannot be written.
    """
    if path.suffix.lower() != ".mp4":
        raise UserError(f"cannot write {path}: the suffix is {path.suffix!r}, legal is '.mp4'")
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder, a file name is needed")
        if path.exists() and not overwrite:
            raise UserError(f"{path} already exists: choose another name or allow overwriting")
        if not path.parent.is_dir():
            raise UserError(f"cannot write {path}: there is no folder {path.parent}")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise disk_error(path, error) from error


def _check_format(fps: int, height: int, width: int) -> None:
    if fps < 1:
        raise UserError(f"the frame rate is {fps}, legal is a whole number from 1")
    if height < 2 or width < 2 or height % 2 or width % 2:
        near = (max(2, width + width % 2), max(2, height + height % 2))
        raise UserError(
            f"the video is {width}x{height}, but H.264 needs an even width and height, "
            f"such as {near[0]}x{near[1]}"
        )


def _check_frames(frames: Frames, height: int, width: int) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (height, width, 3):
        raise ValueError(
            f"frames must be (n, {height}, {width}, 3) uint8, got {frames.shape} {frames.dtype}"
        )


def _add_stream(
    container: OutputContainer, fps: int, height: int, width: int, threads: int
) -> VideoStream:
    stream = container.add_stream("libx264", rate=fps, options=X264)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    codec = stream.codec_context
    codec.time_base = Fraction(1, fps)
    codec.gop_size = fps
    codec.thread_count = threads
    codec.color_range = ColorRange.MPEG
    codec.colorspace = Colorspace.ITU709
    codec.color_primaries = ColorPrimaries.BT709
    codec.color_trc = ColorTrc.BT709
    return stream


class _GrowingFile:
    """Takes the muxer's bytes and appends them to a file, a whole fragment or nothing of it."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # a process given up for dead may still write to that one
        self._file = path.open("wb", buffering=0)
        self._pending = bytearray()

    def write(self, data: bytes) -> int:
        """What FFmpeg calls: nothing reaches the disk before `commit`."""
        self._pending += data
        return len(data)

    def commit(self) -> None:
        """Append what was taken. After an OSError the file ends where it ended before."""
        if not self._pending:
            return
        end = self._file.tell()
        left = memoryview(bytes(self._pending))
        self._pending.clear()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()


class Mp4Writer:
    """H.264 in MP4: `partial` plays while it grows, `close` makes the target of it in one move.

    Each second is on disk as soon as the next one begins. A killed run leaves the partial file,
    playable to its last whole second, and never a half-made target.
    """

    def __init__(
        self,
        path: Path,
        *,
        fps: int,
        height: int,
        width: int,
        threads: int = 1,
        overwrite: bool = False,
    ) -> None:
        """Open the partial file next to `path`; `threads` is the encoder's, 0 as many as it likes.

        Raises:
            UserError: a size or frame rate that H.264 cannot hold, or what `check_output` refuses.
        """
        _check_format(fps, height, width)
        check_output(path, overwrite)
        self.path = path
        self.partial = path.with_name(f"{path.stem}.part{path.suffix}")
        self._fps, self._height, self._width = fps, height, width
        self._overwrite = overwrite
        self._frames = 0
        self._open = True
        self._reformatter = VideoReformatter()
        try:
            for left_over in path.parent.glob(f"{escape(path.stem)}.*{FINISHING}"):
                left_over.unlink()
            self._file = _GrowingFile(self.partial)
        except OSError as error:
            raise disk_error(self.partial, error) from error
        self._container = av.open(self._file, "w", format="mp4", options=GROWING)
        self._stream = _add_stream(self._container, fps, height, width, threads)
        try:
            self._container.start_encoding()
        except av.FFmpegError as error:
            self._open = False
            self._file.close()
            self.partial.unlink()
            raise UserError(
                f"the H.264 encoder can't make {width}x{height} at {fps} fps: {error.strerror}"
            ) from error

    def write(self, frames: Frames) -> None:
        """Encode and append frames, (n, height, width, 3) uint8 RGB.

        Raises:
            UserError: the disk is full or failed; the writer is closed then.
        """
        if not self._open:
            raise ValueError(f"{self.path} is closed")
        _check_frames(frames, self._height, self._width)
        try:
            for pixels in frames:
                self._container.mux(self._stream.encode(self._to_yuv(pixels)))
                self._frames += 1
                self._file.commit()
        except OSError as error:
            self._open = False
            self._file.close()
            raise disk_error(self.partial, error) from error

    def close(self) -> None:
        """Finish: the target gets its index in front, and no frame is encoded again.

        The target appears whole or not at all. After `abort` or an error this does nothing.

        Raises:
            UserError: the disk is full or failed, or somebody else made the target meanwhile; the
                partial file stays and holds the whole video.
        """
        if not self._open:
            return
        try:
            self._finish_partial()
            if not self._frames:
                self.partial.unlink()
                raise ValueError(f"no frame was written to {self.path}")
            self._make_target()
        except OSError as error:
            raise disk_error(self.path, error) from error

    def abort(self) -> None:
        """Keep the partial file, playable as far as it came; the target is not made or touched."""
        if self._open:
            try:
                self._finish_partial()
                if not self._frames:
                    self.partial.unlink()
            except OSError as error:
                logger.warning("the last frames of %s are lost: %s", self.partial, error.strerror)

    def _to_yuv(self, pixels: Frames) -> av.VideoFrame:
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts = self._frames
        frame.time_base = Fraction(1, self._fps)
        return frame

    def _finish_partial(self) -> None:
        self._open = False
        try:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._file.commit()
        finally:
            self._file.close()

    def _make_target(self) -> None:
        if self.path.exists() and not self._overwrite:
            raise UserError(f"{self.path} was made by somebody else; this video is {self.partial}")
        name = f"{self.path.stem}.{secrets.token_hex(4)}{FINISHING}"
        finished = self.path.with_name(name)
        try:
            _remux(self.partial, finished)
            sync(finished)
            os.replace(finished, self.path)
            self.partial.unlink()
            sync(self.path.parent)
        finally:
            finished.unlink(missing_ok=True)


def _remux(source: Path, target: Path) -> None:
    """Copy the stream into a file with its index in front, without encoding it again."""
    with (  # absolute, since FFmpeg takes what stands before a colon for a protocol
        av.open(str(source.absolute())) as reader,
        av.open(str(target.absolute()), "w", format="mp4", options=FINISHED) as writer,
    ):
        video = reader.streams.video[0]
        copy = writer.add_stream_from_template(video)
        for packet in reader.demux(video):
            if packet.dts is not None:  # the last packet of a demuxer is empty
                packet.stream = copy
                writer.mux(packet)


class PngWriter:
    """One PNG for each frame, 000000.png and so on; each file is whole or not there."""

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        """Make the folder; with `overwrite` the frames that it holds are removed.

        Raises:
            UserError: the folder holds frames already, or cannot be made or written.
        """
        self._folder = folder
        self._frames = 0
        try:
            folder.mkdir(exist_ok=True)
            old = [path for path in folder.glob("*.png") if path.stem.isdigit()]
            if old and not overwrite:
                raise UserError(
                    f"{folder} already holds {len(old)} frames: choose another folder or allow "
                    f"overwriting"
                )
            for path in old:
                path.unlink()
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise disk_error(folder, error) from error

    def write(self, frames: Frames) -> None:
        """Write frames, (n, H, W, 3) uint8 RGB. Raises UserError when the disk refuses them."""
        _check_frames(frames, *frames.shape[1:3])
        for pixels in frames:
            path = self._folder / f"{self._frames:06d}.png"
            part = path.with_suffix(".part")
            try:
                Image.fromarray(pixels).save(part, format="PNG")
                os.replace(part, path)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise disk_error(path, error) from error
            self._frames += 1

    def close(self) -> None:
        """Nothing is left to do: every frame is finished when `write` returns."""

    def abort(self) -> None:
        """Nothing is left to do: the frames so far stay."""


class Tee:
    """One stream of frames to several writers; an error in one still ends the others."""

    def __init__(self, writers: Sequence[VideoWriter]) -> None:
        self._writers = tuple(writers)

    def write(self, frames: Frames) -> None:
        for writer in self._writers:
            writer.write(frames)

    def close(self) -> None:
        with ExitStack() as stack:
            for writer in self._writers:
                stack.callback(writer.close)

    def abort(self) -> None:
        with ExitStack() as stack:
            for writer in self._writers:
                stack.callback(writer.abort)
