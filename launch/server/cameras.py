"""Live sessions with a camera: each has a process of its own, on a device that is kept for them."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from starlette.concurrency import run_in_threadpool

from longtake.launch import camera
from longtake.launch.jobs import Ask
from longtake.launch.server.errors import ApiError, without_paths
from longtake.runtime.fragments import GrowingVideo

SILENCE = 60.0  # seconds without a message, after which others may have the camera
PERIOD = 0.1  # seconds between two looks at the video
COMMAND = (sys.executable, "-P", "-m", "longtake.launch.camera")


class Cameras:
    """How many sessions there may be at a time, and where they are made."""

    def __init__(self, count: int, device: str, folder: Path) -> None:
        """`count` 0: none. Their videos lie in `folder` as long as they are shown."""
        self._count, self._device, self._folder = count, device, folder
        self._free = count

    @asynccontextmanager
    async def one(self, ask: Ask) -> AsyncIterator[tuple[Process, Path]]:
        """A process that has been told what to make, and where its video grows.

        Raises:
            ApiError: there are no cameras here, or all are in use.
        """
        if not self._count:
            words = "this server takes no frames; its operator starts it with --cameras N"
            raise ApiError(400, words, "no_cameras", "input")
        if not self._free:
            raise ApiError(429, f"all {self._count} cameras are in use", "too_many_sessions")
        self._free -= 1
        out = self._folder / f"{secrets.token_hex(16)}.mp4"
        process = None
        try:
            process = await asyncio.create_subprocess_exec(*COMMAND, stdin=PIPE, stdout=PIPE)
            asked = json.dumps({**_arguments(ask, self._device), "out": str(out)})
            assert process.stdin is not None
            process.stdin.write(camera.pack(camera.ASK, asked.encode()))
            yield process, out.with_name(f"{out.stem}.part.mp4")
        finally:
            self._free += 1
            if process is not None:
                assert process.stdin is not None
                process.stdin.close()
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            for left in (out, out.with_name(f"{out.stem}.part.mp4")):
                left.unlink(missing_ok=True)


async def attend(socket: WebSocket, process: Process, part: Path) -> None:
    """Pass frames and prompts on, and show the video, until either side has no more."""
    async with asyncio.TaskGroup() as group:
        told = group.create_task(_tell(socket, process))
        shown = group.create_task(_show(socket, process, part))
        heard = group.create_task(_hear(socket, process))
        await asyncio.wait({shown, heard}, return_when=asyncio.FIRST_COMPLETED)
        if shown.done() or heard.result():  # what the last frames gave is to be seen
            await shown
            await told
            await socket.send_json({"type": "session.ended"})
        for task in (told, shown, heard):
            task.cancel()


async def _hear(socket: WebSocket, process: Process) -> bool:
    """Pass on what comes; returns whether the client stays to see the end."""
    assert process.stdin is not None
    with suppress(WebSocketDisconnect, ConnectionError, TimeoutError):
        while (message := await _receive(socket))["type"] == "websocket.receive":
            if (picture := message.get("bytes")) is not None:
                process.stdin.write(camera.pack(camera.FRAME, picture))
                await process.stdin.drain()  # no faster than they are made to video
                continue
            try:
                said = json.loads(message["text"])
                kind, words = said["type"], str(said.get("prompt", ""))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                kind, words = None, ""
            if kind == "session.stop":
                process.stdin.close()
                return True
            if kind == "prompt.switch":
                process.stdin.write(camera.pack(camera.PROMPT, words.encode("utf-8", "replace")))
            else:
                error = ApiError(400, "legal types are prompt.switch and session.stop")
                await socket.send_json({"type": "error", **error.body()})
    return False


async def _receive(socket: WebSocket) -> MutableMapping[str, Any]:
    async with asyncio.timeout(SILENCE):
        return await socket.receive()


async def _show(socket: WebSocket, process: Process, part: Path) -> None:
    growing = GrowingVideo(part, full=1)  # nothing is begun again, so every fragment is whole
    try:
        over = False
        while not over:
            over = process.returncode is not None  # asked for before reading
            while piece := await run_in_threadpool(growing.take, over):
                await socket.send_bytes(piece)
            await asyncio.sleep(PERIOD)
    finally:
        growing.close()


async def _tell(socket: WebSocket, process: Process) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        told = json.loads(line)
        match told.pop("tell"):
            case "started":
                await socket.send_json({"type": "session.started", **told})
            case "switched":
                await socket.send_json({"type": "prompt.switched", **told})
            case _:
                error = ApiError(400, without_paths(told["reason"]), "invalid_request")
                await socket.send_json({"type": "error", **error.body()})


def _arguments(ask: Ask, device: str) -> Mapping[str, Any]:
    """Of `launch.api.stream`."""
    own = {"guidance": ask.guidance, "negative": ask.negative}
    return {
        "prompt": ask.prompt,
        "seconds": ask.seconds,
        "model": ask.model,
        "seed": ask.seed,
        "size": ask.size,
        "fps": ask.fps,
        "strategy": ask.strategy or "stream",
        "steps": ask.steps,
        "device": device,
        "settings": [
            *ask.settings,
            *(f"{key}={json.dumps(value)}" for key, value in own.items() if value is not None),
        ],
    }
