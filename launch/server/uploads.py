"""Pictures and videos that clients send: kept under names of ours, and believed by content only."""

from __future__ import annotations

import base64
import binascii
import io
import math
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from longtake.launch.server.errors import ApiError
from longtake.runtime.durable import disk_errors
from longtake.runtime.footage import video_length
from longtake.runtime.video import Mp4Writer
from longtake.scheduler.errors import UserError

MOST_PIXELS = 4096 * 4096
# What a decoder is tried on, by the bytes that such files begin with.
VIDEOS = {"mp4": (4, b"ftyp"), "webm": (0, b"\x1aE\xdf\xa3")}
PICTURES = {"png": (0, b"\x89PNG\r\n\x1a\n"), "jpeg": (0, b"\xff\xd8\xff"), "webp": (8, b"WEBP")}
DEMUXERS = {"mp4": "mov", "webm": "matroska"}


class Uploads:
    """A folder for what is on its way to the central scheduler, which makes a copy of its own."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, and remove what an earlier process left in it."""
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        self._folder = folder

    @contextmanager
    def kept(self, data: bytes, seconds: float) -> Iterator[tuple[Path, float]]:
        """The video, or the picture as a video of so many `seconds`, as a file for the time being;
        with its length in seconds.

        Raises:
            ApiError: it is neither, or damaged.
            DiskError: the disk refuses.
        """
        path = self._folder / f"{secrets.token_hex(16)}.mp4"
        try:
            kind = _kind(data)
            if kind in VIDEOS:
                path = path.with_suffix(f".{kind}")
                with disk_errors(path):
                    path.write_bytes(data)
                seconds = _check_video(path, kind)
            else:
                _write_still(_picture(data, kind), seconds, path)
            yield path, seconds
        finally:
            path.unlink(missing_ok=True)


def from_data_url(url: str) -> bytes:
    """The bytes of a data URL; raises ApiError if it is none: other addresses are not fetched."""
    head, comma, body = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise _refused("must be a data URL in base64; other addresses are not fetched")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise _refused("is no base64") from error


def _kind(data: bytes) -> str:
    for kind, (start, magic) in (VIDEOS | PICTURES).items():
        if data[start : start + len(magic)] == magic:
            return kind
    raise _refused(f"is none of {', '.join(VIDEOS | PICTURES)}")


def _picture(data: bytes, kind: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=[kind])
            if picture.width * picture.height > MOST_PIXELS:
                raise _refused(f"has more than {MOST_PIXELS} pixels")
            return picture.convert("RGB")
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise _refused(f"can't be read as {kind}") from error


def _check_video(path: Path, kind: str) -> float:
    """Decode one frame, by the one demuxer that the content calls for and no other; returns the
    length in seconds."""
    try:
        with av.open(str(path), format=DEMUXERS[kind]) as container:
            if not container.streams.video:
                raise _refused("holds no video")
            stream = container.streams.video[0]
            if stream.width * stream.height > MOST_PIXELS:
                raise _refused(f"has more than {MOST_PIXELS} pixels")
            next(container.decode(video=0))
        frames, rate = video_length(path)
    except (av.FFmpegError, StopIteration, UserError) as error:
        raise _refused(f"can't be read as {kind}") from error
    return frames / rate


def _write_still(picture: Image.Image, seconds: float, path: Path) -> None:
    """One frame a second; whoever reads it shows each as long."""
    width, height = (max(2, side - side % 2) for side in picture.size)
    frame = np.asarray(picture.crop((0, 0, width, height)))[None]
    writer = Mp4Writer(path, fps=1, height=height, width=width)
    for _ in range(math.ceil(seconds)):
        writer.write(frame)
    writer.close()


def _refused(why: str) -> ApiError:
    return ApiError(400, f"input_reference {why}", "invalid_input", "input_reference")
