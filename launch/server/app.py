"""The application: endpoints, page and documents around one services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

import longtake
from longtake.launch.server import errors, live, overview, videos
from longtake.launch.server.errors import ErrorReply
from longtake.launch.server.frame import Frame
from longtake.launch.server.schemas import VideoRequest
from longtake.launch.server.services import Services

DESCRIPTION = """Videos of any length, in the style of OpenAI's `/v1/videos`, with Longtake's own
fields beside. Live sessions are at the WebSocket `/v1/live`."""


def make_app(services: Services, max_body: int) -> ASGIApp:
    """The server's application; `max_body` is the most bytes that a request may have."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.watch.start()
        try:
            yield
        finally:
            services.watch.close()

    app = FastAPI(
        title="Longtake",
        version=longtake.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # these two load scripts of other sites
        redoc_url=None,
    )
    app.state.services = services
    for router in (videos.router, overview.router, live.router):
        app.include_router(router)
    errors.install(app)
    page = Path(str(files("longtake.launch.server"))) / "page"
    app.mount("/", StaticFiles(directory=page, html=True), name="page")
    if services.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=services.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID", "Range"],
        )
    _document(app)
    return Frame(app, services, max_body)  # around all of it, errors too


def _document(app: FastAPI) -> None:
    """Put right what FastAPI can't know: the body that an endpoint reads itself, and that what is
    wrong with a request is told with 400."""
    made = app.openapi()
    schemas = made["components"]["schemas"]
    fields = VideoRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    refusal = ErrorReply.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= {**fields.pop("$defs"), **refusal.pop("$defs"), "ErrorReply": refusal}
    as_json = {"type": "string", "contentMediaType": "application/json"}
    file = {"type": "string", "format": "binary"}
    in_form = {"prompts": as_json, "settings": as_json, "input_reference": file}
    schemas["VideoRequest"] = fields
    schemas["VideoForm"] = {
        **fields,
        "title": "VideoForm",
        "properties": {**fields["properties"], **in_form},
    }
    for path in made["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
