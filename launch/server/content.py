"""The bytes of a video: as they come while it is being made, and in any ranges when it is there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Send

from longtake.launch.jobs import Job, NoSuchJob, Status
from longtake.launch.server.errors import ApiError
from longtake.launch.server.watch import Watch
from longtake.runtime.fragments import GrowingVideo

if TYPE_CHECKING:
    from longtake.launch.central import Central

MEDIA_TYPE = "video/mp4"
CHUNK = 1 << 18  # bytes
PATIENCE = 15.0  # seconds between two looks where nothing happens
_RANGES = re.compile(r"bytes=\s*(\d+-\d*|-\d+)(\s*,\s*(\d+-\d*|-\d+)){0,9}\s*")


class BrokenOff(Exception):
    """There will be no more of a video that has begun."""


class GrowingResponse(StreamingResponse):
    """A video while it is made. Who gets less than all sees the connection break, not end."""

    media_type = MEDIA_TYPE

    async def stream_response(self, send: Send) -> None:
        """See `StreamingResponse`."""
        try:
            await super().stream_response(send)
        except BrokenOff:
            return  # without the last chunk, so that the server drops the connection


def respond(central: Central, watch: Watch, job: Job, ranges: str | None) -> Response:
    """The video of a job.

    Raises:
        ApiError: it hasn't begun, or there will be none; or the ranges are none.
    """
    if job.status is Status.COMPLETED:
        if ranges is not None:
            _check_ranges(ranges)
        if not Path(job.video).is_file():
            raise ApiError(404, "the file of this video is gone", "not_found")
        return FileResponse(job.video, media_type=MEDIA_TYPE, filename=f"{job.id}.mp4")
    if job.status is Status.FAILED:
        raise ApiError(404, "this video failed, so there is nothing to play", "video_failed")
    if job.status in (Status.CANCELLED, Status.CANCELLING):
        raise ApiError(404, "this video was cancelled, so there is nothing to play", "cancelled")
    if job.status is Status.QUEUED and job.epoch == 0:
        raise ApiError(
            409,
            "this video still waits for devices",
            "video_not_ready",
            headers={"Retry-After": "2"},
        )
    headers = {"Accept-Ranges": "none", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return GrowingResponse(pieces(central, watch, job), headers=headers)


async def pieces(central: Central, watch: Watch, job: Job) -> AsyncIterator[bytes]:
    """A video from its beginning, as fast as it is made, fragment by fragment.

    Raises:
        BrokenOff: it failed, was cancelled or deleted, or the server ends.
    """
    growing, seen = GrowingVideo(Path(job.part), job.fps), 0
    try:
        with watch.of(job.id):
            while True:
                over = job.status is Status.COMPLETED  # asked for before reading
                while piece := await run_in_threadpool(growing.take, over):
                    yield piece
                if over:
                    break
                if job.status.ended or watch.over:
                    raise BrokenOff
                seen = await watch.changed(job.id, seen, PATIENCE)
                job = await _now(central, job.id)
        if not growing.opened:  # it was whole before anything was seen of it
            async for piece in _whole(job.video):
                yield piece
        elif growing.frames != job.total_frames:  # begun again and finished, all unseen
            raise BrokenOff
    finally:
        growing.close()


async def _now(central: Central, id_: str) -> Job:
    try:
        return await run_in_threadpool(central.get, id_)
    except NoSuchJob as error:
        raise BrokenOff from error


async def _whole(path: str) -> AsyncIterator[bytes]:
    with open(path, "rb") as file:
        while piece := await run_in_threadpool(file.read, CHUNK):
            yield piece


def _check_ranges(ranges: str) -> None:
    """Raises ApiError where the framework would answer with plain text."""
    pairs = re.findall(r"(\d+)-(\d+)", ranges)
    if not _RANGES.fullmatch(ranges) or any(int(first) > int(last) for first, last in pairs):
        raise ApiError(400, "Range must be bytes=FIRST-LAST", "invalid_request", "Range")
