"""Video files as frames: streamed for measuring, or as a strip of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from longtake.scheduler.errors import UserError


def load_video(path: str | Path) -> tuple[Iterator[npt.NDArray[np.uint8]], float]:
    """Open a video file: its frames as (H, W, 3) uint8 RGB, decoded as they are asked for, and fps.

    Raises:
        UserError: there is no such file, or it holds no video; on decoding, that it is damaged.
    """
    try:
        with av.open(str(path)) as container:
            rates = [stream.average_rate for stream in container.streams.video]
    except FileNotFoundError:
        raise UserError(f"there is no video at {path}") from None
    except av.FFmpegError as error:
        raise UserError(f"{path} can't be read as a video: {error.strerror}") from error
    if not rates or not rates[0]:
        raise UserError(f"{path} holds no video stream with a frame rate")
    return _decode(path), float(rates[0])


def video_length(path: str | Path) -> tuple[int, float]:
    """How many frames a video file holds, and how many a second; they are not decoded.

    Raises:
        UserError: as `load_video`.
    """
    _, fps = load_video(path)
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size), fps


def _decode(path: str | Path) -> Iterator[npt.NDArray[np.uint8]]:
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    except av.FFmpegError as error:
        raise UserError(f"{path} can't be decoded to its end: {error.strerror}") from error


def strip(path: str | Path, count: int, out_png: str | Path) -> None:
    """Write `count` frames of a video, evenly from first to last, side by side as a PNG.

    Raises:
        UserError: the file is no video, or holds fewer frames than `count`.
    """
    total = sum(1 for _ in load_video(path)[0])
    if not 1 <= count <= total:
        raise UserError(f"a strip of {path} can have 1 to {total} frames, not {count}")
    chosen = set(np.linspace(0, total - 1, count).round().astype(int).tolist())
    pictures = [frame for i, frame in enumerate(load_video(path)[0]) if i in chosen]
    gap = np.full((pictures[0].shape[0], 2, 3), 255, np.uint8)
    spaced = [piece for picture in pictures for piece in (picture, gap)][:-1]
    Image.fromarray(np.concatenate(spaced, axis=1)).save(out_png)
