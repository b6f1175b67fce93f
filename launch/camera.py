"""The process of a room: live sessions with cameras that share a model. Pictures in, videos out.

It reads messages from stdin, each a kind (one byte), the number of a session and a length (four
bytes each, big-endian) and a body:

    r   the room, once, as JSON: arguments of `launch.streams.streams`
    j   a session joins, as JSON: `out`, a new .mp4 file, and arguments of `Streams.join`
    f   a picture, PNG, JPEG or WebP
    p   a prompt, from the next block on
    e   there are no more pictures
    x   nobody looks at the session any more

and tells JSON lines on stdout, each with its `session`: `started`; `took` whenever it has taken a
picture, of which no more than `WAITING` may be on their way; `switched` and `refused` for prompts;
and at last `ended` or `failed`. The end of stdin is the end of all.
"""

from __future__ import annotations

import io
import json
import queue
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from PIL import Image

from longtake.launch.session import quiet_libraries
from longtake.launch.streams import Streams, streams
from longtake.runtime.live_stream import LiveStream
from longtake.runtime.source import Frame
from longtake.runtime.video import Mp4Writer
from longtake.scheduler.errors import UserError

ROOM, JOIN, FRAME, PROMPT, END, LEAVE = (kind.encode() for kind in "rjfpex")
HEAD = struct.Struct(">cII")
WAITING = 8  # pictures of a session that are on their way or not yet looked at
FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 4096 * 4096


def pack(kind: bytes, session: int, body: bytes = b"") -> bytes:
    """A message."""
    return HEAD.pack(kind, session, len(body)) + body


def read(source: BinaryIO) -> Iterator[tuple[bytes, int, bytes]]:
    """Kinds, sessions and bodies of messages until there are no more."""
    while len(head := source.read(HEAD.size)) == HEAD.size:
        kind, session, length = HEAD.unpack(head)
        yield kind, session, source.read(length)


class Teller:
    """Says something of sessions to whoever started this process; for any thread."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._lock = out, threading.Lock()

    def __call__(self, kind: str, session: int, **facts: Any) -> None:
        """One line."""
        with self._lock:
            self._out.write(json.dumps({"tell": kind, "session": session, **facts}) + "\n")
            self._out.flush()


class Session:
    """Pictures of a camera, as frames, and a thread that writes what is made of them."""

    def __init__(self, number: int, room: Streams, asked: Mapping[str, Any], tell: Teller) -> None:
        """`asked` is the body of `j`."""
        self._number, self._tell = number, tell
        self._pictures: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._stream: LiveStream | None = None
        threading.Thread(target=self._work, args=(room, dict(asked)), daemon=True).start()

    def hear(self, kind: bytes, body: bytes) -> None:
        """Take a message."""
        if kind == FRAME:
            self._pictures.put(body)
        elif kind == PROMPT:
            self._switch(body.decode())
        else:
            self._pictures.put(None)
            if kind == LEAVE and self._stream is not None:
                self._stream.close()

    def __iter__(self) -> Iterator[Frame]:
        """Frames, (H, W, 3) uint8 RGB, until no more come; raises UserError for what is none."""
        for picture in iter(self._pictures.get, None):
            self._tell("took", self._number)
            yield decode(picture)

    def _switch(self, prompt: str) -> None:
        try:
            if self._stream is None:
                raise UserError("the session has not started")
            self._tell("switched", self._number, from_second=self._stream.switch(prompt))
        except UserError as error:
            self._tell("refused", self._number, reason=str(error))

    def _work(self, room: Streams, asked: dict[str, Any]) -> None:
        kind, facts = "failed", dict[str, Any](reason="it broke off")
        out = Path(asked.pop("out"))
        try:
            with room.join(**asked, input_video=self) as made:
                self._stream = made
                self._tell("started", self._number, fps=room.fps)
                write(made, room.fps, out)
            live = None if made.report is None else made.report.to_dict()
            kind, facts = "ended", {"launches": made.launches, "shared": made.shared, "live": live}
        except UserError as error:
            facts = {"reason": str(error)}
        finally:
            self._tell(kind, self._number, **facts)


def write(made: Iterator[Frame], fps: int, out: Path) -> None:
    """Write frames as they are made."""
    writer = None
    for frame in made:
        if writer is None:
            height, width, _ = frame.shape
            writer = Mp4Writer(out, fps=fps, height=height, width=width)
        writer.write(frame[None])
    if writer is not None:
        writer.close()


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


def main() -> int:
    """Keep a room open until stdin ends; returns the exit code."""
    quiet_libraries()
    messages, tell = read(sys.stdin.buffer), Teller(sys.stdout)
    sessions: dict[int, Session] = {}
    kind, number, body = next(messages)
    assert kind == ROOM
    try:
        room = streams(**json.loads(body))
    except UserError as error:
        tell("failed", number, reason=str(error))
        return 2
    with room:
        for kind, number, body in messages:
            if kind == JOIN:
                sessions[number] = Session(number, room, json.loads(body), tell)
            else:
                sessions[number].hear(kind, body)
                if kind == LEAVE:
                    del sessions[number]
    return 0


if __name__ == "__main__":
    sys.exit(main())
