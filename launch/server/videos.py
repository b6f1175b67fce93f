"""`/v1/videos`: make, see, play, change, cancel and delete videos."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from longtake.launch.jobs import Job, NoSuchJob
from longtake.launch.server import content
from longtake.launch.server.bodies import documented_body, read_body
from longtake.launch.server.entry import Here, Known
from longtake.launch.server.errors import ApiError, documented
from longtake.launch.server.schemas import (
    Deleted,
    Page,
    PromptSwitch,
    Switched,
    Variant,
    Video,
    VideoList,
    event_of,
    video_of,
)
from longtake.launch.server.services import Services

router = APIRouter(prefix="/v1/videos", tags=["videos"])
BINARY = {"schema": {"type": "string", "format": "binary"}}


def _own_job(services: Here, caller: Known, video_id: Annotated[str, Path(max_length=100)]) -> Job:
    return services.own(video_id, caller)


Own = Annotated[Job, Depends(_own_job)]


@router.post("", responses=documented(404, 409, 415), openapi_extra=documented_body())
async def create(request: Request, services: Here, caller: Known) -> Video:
    """Ask for a video. It is accepted, and will be made whatever happens, when this returns."""
    asked, data = await read_body(request)
    return video_of(await run_in_threadpool(services.create, asked, data, caller, time.time()))


@router.get("", responses=documented(404))
def list_videos(
    services: Here,
    caller: Known,
    asked: Annotated[Page, Query()],
) -> VideoList:
    """Videos by age, the newest first, one page at a time."""
    newest_first = asked.order == "desc"
    found = services.central.list(caller.owner, asked.after, asked.limit + 1, newest_first)
    page = [video_of(job) for job in found[: asked.limit]]
    return VideoList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(found) > asked.limit,
    )


@router.get("/{video_id}", responses=documented(404))
def retrieve(job: Own) -> Video:
    """How far a video is."""
    return video_of(job)


@router.delete("/{video_id}", responses=documented(404, 409))
def delete(services: Here, job: Own) -> Deleted:
    """Remove a video that is made, cancelled or failed, and its files."""
    services.central.delete(job.id)
    return Deleted(id=job.id)


@router.post("/{video_id}/cancel", responses=documented(404, 409))
def cancel(services: Here, job: Own) -> Video:
    """Stop a video after the block at work; its devices are free for the next one then."""
    return video_of(services.central.cancel(job.id))


@router.post("/{video_id}/prompt", responses=documented(404, 409))
def switch_prompt(services: Here, job: Own, wanted: PromptSwitch) -> Switched:
    """Another prompt from the next block on."""
    return Switched(id=job.id, from_second=services.central.switch(job.id, wanted.prompt))


@router.get(
    "/{video_id}/content",
    response_class=Response,
    responses={
        **documented(404, 409),
        200: {"description": "The video.", "content": {content.MEDIA_TYPE: BINARY}},
        206: {"description": "Ranges of it.", "content": {content.MEDIA_TYPE: BINARY}},
        416: {"description": "It is shorter than that."},
    },
)
def download(
    services: Here,
    job: Own,
    asked: Annotated[Variant, Query()],
    ranges: Annotated[str | None, Header(alias="Range", max_length=200)] = None,
) -> Response:
    """The video as MP4: in byte ranges when it is made, and until then as it comes, from the start.

    Who reads on gets all of it, and plays it meanwhile. If the video is cancelled or fails, the
    connection breaks.
    """
    if asked.variant != "video":
        raise ApiError(400, f"variant must be video, got {asked.variant!r}", param="variant")
    return content.respond(services.central, services.watch, job, ranges)


@router.get("/{video_id}/events", response_class=EventSourceResponse, responses=documented(404))
async def events(
    services: Here,
    job: Own,
    since: Annotated[int, Header(alias="Last-Event-ID", ge=0, lt=2**63)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """What happens to a video, as server-sent events: `video` whenever it has changed, with the
    whole object; and by their names what was noted of it, such as `fault` or `switched`."""
    async for event in _tell(services, job, since):
        yield event


async def _tell(services: Services, job: Job, since: int) -> AsyncIterator[ServerSentEvent]:
    seen = 0
    with services.watch.of(job.id):
        while not services.watch.over:
            try:
                now = await run_in_threadpool(services.central.get, job.id)
                happened = await run_in_threadpool(services.central.events, job.id, since)
            except NoSuchJob:
                return
            for event in happened:
                since = event.number
                yield ServerSentEvent(event=event.kind, id=str(since), data=event_of(event))
            yield ServerSentEvent(event="video", data=video_of(now))
            if now.status.ended:
                return
            seen = await services.watch.changed(job.id, seen, content.PATIENCE)
