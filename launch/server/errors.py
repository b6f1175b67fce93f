"""What goes wrong, as clients of the OpenAI API expect to be told: never a path, never a trace."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from longtake.launch.job_store import StoreBroken
from longtake.launch.jobs import JobConflict, NoSuchJob
from longtake.runtime.durable import DiskError
from longtake.scheduler.errors import UserError

logger = logging.getLogger(__name__)

_PATH = re.compile(r"(?<![\w<.~])~?(?:/[\w.@+~=-]+)+/?")
MOST = 1000  # characters of a message
RETRY = "30"  # seconds after which a disk may have room again
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Those of the framework itself, in our words.
WORDS = {
    404: "there is nothing at this address",
    405: "this address takes other methods",
}


class ErrorBody(BaseModel):
    """What went wrong in one line, `code` for programs, and `param` if a field is to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every reply that is no success."""

    error: ErrorBody


class ApiError(HTTPException):
    """A refusal. `message` is told to the client as it is."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.message, self.code, self.param = message, code, param

    def reply(self) -> JSONResponse:
        """As a reply of HTTP."""
        return JSONResponse(self.body(), self.status_code, self.headers)

    def body(self) -> dict[str, Any]:
        """See `ErrorReply`."""
        kind = KINDS.get(
            self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error"
        )
        param = None if self.param is None else _plain(self.param)
        told = ErrorBody(message=_plain(self.message), type=kind, param=param, code=self.code)
        return ErrorReply(error=told).model_dump()


def refusal(error: UserError | StoreBroken) -> ApiError:
    """What a mistake of the user is to a client, or a disk that refuses."""
    if isinstance(error, StoreBroken | DiskError):
        logger.error("%s", error)
        words = "the disk of the server is full, or refuses; nothing was changed, try again later"
        return ApiError(503, words, "unavailable", headers={"Retry-After": RETRY})
    message = without_paths(str(error))
    if isinstance(error, NoSuchJob):
        return ApiError(404, message, "not_found")
    if isinstance(error, JobConflict):
        return ApiError(409, message, "conflict")
    return ApiError(400, message, "invalid_request")


def invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """A request that isn't of the form that the API documents; the first thing that is wrong."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    param = ".".join(place) or None
    at = f"{param}: " if param else ""
    return ApiError(400, f"{at}{first['msg']}", "invalid_request", param)


def without_paths(text: str) -> str:
    """The text without files of this machine."""
    return _PATH.sub("<file>", text)


def _plain(text: str) -> str:
    """One line that JSON can hold: clients send halves of surrogate pairs, too."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:MOST]


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: the refusals of an endpoint, besides those that all have."""
    every = sorted({400, 401, 403, 413, 429, 503, *statuses})
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": body} for status in every}


def install(app: FastAPI) -> None:
    """Let all errors of an app be told so."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.reply()

    @app.exception_handler(StoreBroken)
    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError | StoreBroken) -> JSONResponse:
        return refusal(error).reply()

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(error.errors()).reply()

    @app.exception_handler(ValidationError)
    async def model_error(request: Request, error: ValidationError) -> JSONResponse:
        return invalid(error.errors()).reply()  # of a body that an endpoint reads itself

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        words = WORDS.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, words, headers=error.headers).reply()

    @app.exception_handler(Exception)
    async def any_error(request: Request, error: Exception) -> JSONResponse:
        number = request.scope.get("request_id", "")
        logger.error("request %s failed", number, exc_info=error)
        words = f"the server made a mistake; its log tells more of request {number}"
        return ApiError(500, words, "internal_error").reply()
