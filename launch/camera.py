"""The process of a live session with a camera: pictures in, a video that grows out.

It reads messages from stdin, each a kind (one byte), a length (four, big-endian) and a body:

    a   what is asked for, as JSON: `out`, a new .mp4 file, and arguments of `launch.api.stream`
    f   a picture, PNG, JPEG or WebP
    p   a prompt, from the next block on

and tells JSON lines on stdout: `started`, then `switched` and `refused` for prompts, and `failed`.
The end of stdin is the end of the video. Pictures that come faster than video is made of them wait
in the pipe, and so at the client.
"""

from __future__ import annotations

import io
import json
import queue
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from longtake.launch.api import stream
from longtake.launch.session import quiet_libraries
from longtake.launch.stream import Stream
from longtake.runtime.source import Frame
from longtake.runtime.video import Mp4Writer
from longtake.scheduler.errors import UserError

ASK, FRAME, PROMPT = b"a", b"f", b"p"
HEAD = struct.Struct(">cI")
WAITING = 8  # pictures that are taken from the pipe ahead of need
FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 4096 * 4096


def pack(kind: bytes, body: bytes) -> bytes:
    """A message."""
    return HEAD.pack(kind, len(body)) + body


def read(source: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Kinds and bodies of messages until there are no more."""
    while len(head := source.read(HEAD.size)) == HEAD.size:
        kind, length = HEAD.unpack(head)
        yield kind, source.read(length)


class Camera:
    """Pictures that come, as frames."""

    def __init__(self, messages: Iterator[tuple[bytes, bytes]]) -> None:
        self._messages = messages
        self._pictures: queue.Queue[bytes | None] = queue.Queue(WAITING)

    def __iter__(self) -> Iterator[Frame]:
        """Frames, (H, W, 3) uint8 RGB, until no more come; raises UserError for what is none."""
        return map(decode, iter(self._pictures.get, None))

    def follow(self, made: Stream) -> None:
        """Take messages until the last; in a thread of its own."""
        for kind, body in self._messages:
            if kind == FRAME:
                self._pictures.put(body)
                continue
            try:
                tell("switched", from_second=made.switch(body.decode()))
            except UserError as error:
                tell("refused", reason=str(error))
        self._pictures.put(None)


def decode(picture: bytes) -> Frame:
    """A picture as a frame.

    Raises:
        UserError: it is none, or too large.
    """
    try:
        with Image.open(io.BytesIO(picture), formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise UserError(f"a frame has more than {MOST_PIXELS} pixels")
            return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"a frame is none of {', '.join(FORMATS)}, or damaged") from error


def tell(kind: str, **facts: Any) -> None:
    """Say something to whoever started this process."""
    sys.stdout.write(json.dumps({"tell": kind, **facts}) + "\n")
    sys.stdout.flush()


def show(made: Stream, out: Path) -> None:
    """Write frames as they are made."""
    writer = None
    for frame in made:
        if writer is None:
            height, width, _ = frame.shape
            writer = Mp4Writer(out, fps=made.fps, height=height, width=width)
        writer.write(frame[None])
    if writer is not None:
        writer.close()


def main() -> int:
    """Make one video; returns the exit code."""
    quiet_libraries()
    messages = read(sys.stdin.buffer)
    asked = json.loads(next(messages)[1])
    out, camera = Path(asked.pop("out")), Camera(messages)
    try:
        with stream(**asked, input_video=camera) as made:
            tell("started", fps=made.fps)
            threading.Thread(target=camera.follow, args=(made,), daemon=True).start()
            show(made, out)
    except UserError as error:
        tell("failed", reason=str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
