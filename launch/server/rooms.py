"""Rooms of live sessions with cameras, each a process, as the server has them."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

from longtake.launch import camera

COMMAND = (sys.executable, "-P", "-m", "longtake.launch.camera")
LEAVING = 30.0  # seconds for a session to write what is made of it
News = Mapping[str, Any]


class Room:
    """A process of `launch.camera`, which ends when nobody is in it any more.

    Attributes:
        sessions: by number.
        gone: the process has ended.
    """

    def __init__(self, process: Process) -> None:
        self.sessions: dict[int, RoomSession] = {}
        self._process, self._numbers = process, count(1)
        self.gone = False
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls, asked: Mapping[str, Any]) -> Self:
        """Start one; `asked` are arguments of `launch.streams.streams`."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,  # Ctrl-C is for the server, whose end is the end of stdin
        )
        room = cls(process)
        await room.send(camera.pack(camera.ROOM, 0, json.dumps(asked).encode()))
        return room

    async def join(self, out: Path, asked: Mapping[str, Any]) -> RoomSession:
        """Another session, whose video goes to `out`; `asked` are arguments of `Streams.join`."""
        session = RoomSession(self, next(self._numbers))
        self.sessions[session.number] = session
        body = json.dumps({**asked, "out": str(out)}).encode()
        await self.send(camera.pack(camera.JOIN, session.number, body))
        return session

    async def send(self, message: bytes) -> None:
        """Tell the process something, unless it is gone."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):
            self._process.stdin.write(message)
            await self._process.stdin.drain()

    async def close(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._listening

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        why = "its process ended"
        async for line in self._process.stdout:
            told = json.loads(line)
            if (session := self.sessions.get(told["session"])) is not None:
                session.hear(told)
            elif told["tell"] == "failed":  # the room itself
                why = told["reason"]
        self.gone = True
        for session in self.sessions.values():
            session.hear({"tell": "failed", "reason": why})
        await self._process.wait()


class RoomSession:
    """One session.

    Attributes:
        number: in its room.
        over: when it has ended, or failed.
    """

    def __init__(self, room: Room, number: int) -> None:
        self.number, self.over = number, asyncio.Event()
        self._room = room
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._allowed = asyncio.Semaphore(camera.WAITING)

    def hear(self, told: News) -> None:
        """Take what the process tells."""
        if told["tell"] == "took":
            self._allowed.release()
        elif not self.over.is_set():
            if told["tell"] in ("ended", "failed"):
                self.over.set()
            self._news.put_nowait(told)

    async def news(self) -> News:
        """What there is next: `started`, `switched`, `refused`, `ended` or `failed`."""
        return await self._news.get()

    async def picture(self, picture: bytes) -> None:
        """Pass a picture on, no faster than they are made to video."""
        await self._allowed.acquire()
        await self._send(camera.FRAME, picture)

    async def switch(self, prompt: str) -> None:
        """Change the prompt."""
        await self._send(camera.PROMPT, prompt.encode("utf-8", "replace"))

    async def end(self) -> None:
        """There are no more pictures."""
        await self._send(camera.END)

    async def leave(self) -> None:
        """Be out of the room; nobody writes the video then."""
        others = self._room.sessions
        if len(others) > 1:
            await self._send(camera.LEAVE)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), LEAVING)
        del others[self.number]
        if not others:
            await self._room.close()

    async def _send(self, kind: bytes, body: bytes = b"") -> None:
        await self._room.send(camera.pack(kind, self.number, body))
