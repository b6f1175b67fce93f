"""`/v1/live`: a session over a WebSocket. Prompts go in, a video that plays comes out."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from longtake.launch.job_store import StoreBroken
from longtake.launch.jobs import Job, JobConflict, NoSuchJob
from longtake.launch.server import cameras, content
from longtake.launch.server.entry import Here
from longtake.launch.server.errors import ApiError, invalid, refusal
from longtake.launch.server.schemas import CameraRequest, PromptSwitch, VideoRequest, video_of
from longtake.launch.server.services import Services
from longtake.scheduler.errors import UserError

router = APIRouter()
FIRST_WORD = 10.0  # seconds that a client may take to say what it wants
DONE, REFUSED = 1000, 4400  # why the socket is closed
Refusal = ApiError | UserError | StoreBroken | ValidationError
REFUSALS = (ApiError, UserError, StoreBroken, ValidationError)


@router.websocket("/v1/live")
async def live(socket: WebSocket, services: Here) -> None:
    """One session; docs/operations.md tells its messages.

    A video is made with priority `interactive`, or out of the client's own frames, and cancelled
    when the client goes away.
    """
    await socket.accept()
    try:
        await _serve(socket, services, await _first_word(socket))
    except REFUSALS as error:
        await _refuse(socket, error)
        await socket.close(REFUSED)
    except WebSocketDisconnect:
        return


async def _first_word(socket: WebSocket) -> dict[str, Any]:
    try:
        async with asyncio.timeout(FIRST_WORD):
            return await _hear_one(socket)
    except TimeoutError as error:
        raise ApiError(400, f"nothing was asked for within {FIRST_WORD:g} s") from error


async def _serve(socket: WebSocket, services: Services, message: dict[str, Any]) -> None:
    if message.pop("type", None) != "session.start":
        raise ApiError(400, "the first message must be of type session.start", param="type")
    key, source = message.pop("key", None), message.pop("input", None)
    sent = socket.headers.get("authorization") if key is None else f"Bearer {key}"
    caller = await run_in_threadpool(services.door.caller, sent)
    message["priority"] = "interactive"
    if source is not None:
        if source != "camera":
            raise ApiError(400, "input must be camera, or left out", param="input")
        wanted = CameraRequest.model_validate(message)
        ask = await run_in_threadpool(services.film, wanted, caller)
        async with services.cameras.one(ask, wanted.latency) as filmed:
            await cameras.attend(socket, filmed)
        await socket.close(DONE)
        return
    asked = VideoRequest.model_validate(message)
    job = await run_in_threadpool(services.create, asked, None, caller, time.time())
    try:
        await _attend(socket, services, job)
    finally:
        with suppress(JobConflict, NoSuchJob, StoreBroken):  # over by now, or the disk is full
            services.central.cancel(job.id)  # awaits nothing, as this task may be cancelled itself


async def _attend(socket: WebSocket, services: Services, job: Job) -> None:
    """Hear and show until the video is over, or the client goes."""
    await _tell(socket, "session.started", video=video_of(job).model_dump())
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(do(socket, services, job)) for do in (_show, _hear)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


async def _show(socket: WebSocket, services: Services, job: Job) -> None:
    """Send the video as it comes, a word on it after each piece, and how it ended."""
    with suppress(NoSuchJob, WebSocketDisconnect):
        with suppress(content.BrokenOff):
            async for piece in content.pieces(services.central, services.watch, job):
                await socket.send_bytes(piece)
                now = await run_in_threadpool(services.central.get, job.id)
                await _tell(socket, "session.progress", video=video_of(now).model_dump())
        now = await run_in_threadpool(services.central.get, job.id)
        await _tell(socket, "session.ended", video=video_of(now).model_dump())
        await socket.close(DONE)


async def _hear(socket: WebSocket, services: Services, job: Job) -> None:
    """Do what the client says until it says `session.stop` or goes."""
    with suppress(WebSocketDisconnect):
        while True:
            try:
                message = await _hear_one(socket)
                kind = message.pop("type", None)
                if kind == "session.stop":
                    await run_in_threadpool(services.central.cancel, job.id)
                elif kind == "prompt.switch":
                    wanted = PromptSwitch.model_validate(message)
                    second = await run_in_threadpool(services.central.switch, job.id, wanted.prompt)
                    await _tell(socket, "prompt.switched", from_second=second)
                else:
                    raise ApiError(400, "legal types are prompt.switch and session.stop")
            except REFUSALS as error:
                await _refuse(socket, error)


async def _hear_one(socket: WebSocket) -> dict[str, Any]:
    """A message; raises ApiError for what is none, and WebSocketDisconnect."""
    received = await socket.receive()
    if received["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(received["code"])
    if received.get("text") is None:
        raise ApiError(400, "only sessions with input camera take frames")
    try:
        message = json.loads(received["text"])
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "a message must be JSON") from error
    if not isinstance(message, dict):
        raise ApiError(400, "a message must be a JSON object")
    return message


async def _refuse(socket: WebSocket, error: Refusal) -> None:
    if isinstance(error, ValidationError):
        error = invalid(error.errors())
    elif isinstance(error, UserError | StoreBroken):
        error = refusal(error)
    await _tell(socket, "error", **error.body())


async def _tell(socket: WebSocket, kind: str, **facts: Any) -> None:
    await socket.send_json({"type": kind, **facts})
