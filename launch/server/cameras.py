"""Live sessions with cameras. Those of one model, size and steps share a room, and its launches."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from starlette.concurrency import run_in_threadpool

from longtake.launch.jobs import Ask
from longtake.launch.server.errors import ApiError, without_paths
from longtake.launch.server.rooms import Room, RoomSession
from longtake.runtime.fragments import GrowingVideo

SILENCE = 60.0  # seconds without a message, after which others may have the camera
PERIOD = 0.1  # seconds between two looks at the video


@dataclass(frozen=True)
class Filmed:
    """A session that has begun, and where its video grows."""

    session: RoomSession
    part: Path
    fps: int


class Cameras:
    """How many sessions there may be at a time, and the rooms where they are made.

    Attributes:
        free: how many more there may be now.
    """

    def __init__(self, count: int, device: str, folder: Path) -> None:
        """`count` 0: none. Their videos lie in `folder` as long as they are shown."""
        self._count, self._device, self._folder = count, device, folder
        self.free = count
        self._rooms: dict[str, Room] = {}
        self._entering = asyncio.Lock()  # so that two who come at once find the same room

    @asynccontextmanager
    async def one(self, ask: Ask, latency: float | None) -> AsyncIterator[Filmed]:
        """A session; with a `latency` in seconds, its frames have deadlines.

        Raises:
            ApiError: there are no cameras here, all are in use, or it can't be made: what was asked
                for can't be done, or it or another session would be late.
        """
        if not self._count:
            words = "this server takes no frames; its operator starts it with --cameras N"
            raise ApiError(400, words, "no_cameras", "input")
        if not self.free:
            raise ApiError(429, f"all {self._count} cameras are in use", "too_many_sessions")
        self.free -= 1
        out = self._folder / f"{secrets.token_hex(16)}.mp4"
        part = out.with_name(f"{out.stem}.part.mp4")
        try:
            session = await self._enter(ask, latency, out)
            try:
                told = await session.news()
                if told["tell"] == "failed":
                    raise ApiError(400, without_paths(told["reason"]), "invalid_request")
                yield Filmed(session, part, told["fps"])
            finally:
                await session.leave()
        finally:
            self.free += 1
            for left in (out, part):
                left.unlink(missing_ok=True)

    async def _enter(self, ask: Ask, latency: float | None, out: Path) -> RoomSession:
        asked = self._room_of(ask)
        key = json.dumps(asked)
        async with self._entering:
            room = self._rooms.get(key)
            if room is None or room.gone or not room.sessions:
                room = self._rooms[key] = await Room.open(asked)
            live = None if latency is None else True
            own = {"prompt": ask.prompt, "seconds": ask.seconds, "seed": ask.seed}
            return await room.join(out, {**own, "live": live, "latency": latency})

    def _room_of(self, ask: Ask) -> dict[str, Any]:
        """What those who share a room have in common; arguments of `launch.streams.streams`."""
        own = {"guidance": ask.guidance, "negative": ask.negative}
        words = (f"{key}={json.dumps(value)}" for key, value in own.items() if value is not None)
        return {
            "seats": self._count,
            "model": ask.model,
            "size": ask.size,
            "fps": ask.fps,
            "strategy": ask.strategy or "stream",
            "steps": ask.steps,
            "device": self._device,
            "settings": [*ask.settings, *words],
        }


async def attend(socket: WebSocket, filmed: Filmed) -> None:
    """Pass frames and prompts on, and show the video, until either side has no more."""
    await socket.send_json({"type": "session.started", "fps": filmed.fps})
    session = filmed.session
    async with asyncio.TaskGroup() as group:
        told = group.create_task(_tell(socket, session))
        shown = group.create_task(_show(socket, session, filmed.part))
        heard = group.create_task(_hear(socket, session))
        await asyncio.wait({shown, heard}, return_when=asyncio.FIRST_COMPLETED)
        if shown.done() or heard.result():  # what the last frames gave is to be seen
            await shown
            await socket.send_json({"type": "session.ended", **await told})
        for task in (told, shown, heard):
            task.cancel()


async def _hear(socket: WebSocket, session: RoomSession) -> bool:
    """Pass on what comes; returns whether the client stays to see the end."""
    with suppress(WebSocketDisconnect, TimeoutError):
        while (message := await _receive(socket))["type"] == "websocket.receive":
            if (picture := message.get("bytes")) is not None:
                await session.picture(picture)
                continue
            try:
                said = json.loads(message["text"])
                kind, words = said["type"], str(said.get("prompt", ""))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                kind, words = None, ""
            if kind == "session.stop":
                await session.end()
                return True
            if kind == "prompt.switch":
                await session.switch(words)
            else:
                error = ApiError(400, "legal types are prompt.switch and session.stop")
                await socket.send_json({"type": "error", **error.body()})
    return False


async def _receive(socket: WebSocket) -> MutableMapping[str, Any]:
    async with asyncio.timeout(SILENCE):
        return await socket.receive()


async def _show(socket: WebSocket, session: RoomSession, part: Path) -> None:
    growing = GrowingVideo(part, full=1)  # nothing is begun again, so every fragment is whole
    try:
        over = False
        while not over:
            over = session.over.is_set()  # asked for before reading
            while piece := await run_in_threadpool(growing.take, over):
                await socket.send_bytes(piece)
            await asyncio.sleep(PERIOD)
    finally:
        growing.close()


async def _tell(socket: WebSocket, session: RoomSession) -> dict[str, Any]:
    """Pass on what is told until the end; returns what is told of that."""
    while (news := await session.news())["tell"] not in ("ended", "failed"):
        if news["tell"] == "switched":
            await socket.send_json({"type": "prompt.switched", "from_second": news["from_second"]})
        else:
            await _refuse(socket, news["reason"])
    if news["tell"] == "failed":
        await _refuse(socket, news["reason"])
        return {}
    return {name: news[name] for name in ("launches", "shared", "live")}


async def _refuse(socket: WebSocket, reason: str) -> None:
    error = ApiError(400, without_paths(reason), "invalid_request")
    await socket.send_json({"type": "error", **error.body()})
