"""The body of a request for a video: JSON, or a form with a file."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from longtake.launch.server.errors import ApiError
from longtake.launch.server.schemas import VideoRequest

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
REFERENCE = "input_reference"
STRUCTURED = ("prompts", "settings")  # fields that are JSON inside a form


async def read_body(request: Request) -> tuple[VideoRequest, bytes | None]:
    """The fields, and the file if there is one.

    Raises:
        ApiError: it is neither JSON nor a form.
        ValidationError: a field is wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in FORMS:
        return await _read_form(request)
    if kind != "application/json":
        raise ApiError(415, f"the body must be application/json or {FORMS[0]}", "unsupported_media")
    return VideoRequest.model_validate(_parse(await request.body(), "the body")), None


async def _read_form(request: Request) -> tuple[VideoRequest, bytes | None]:
    values: dict[str, Any] = {}
    data = None
    try:
        form_of = request.form(max_files=1, max_fields=60, max_part_size=1 << 22)
        async with form_of as form:
            for name, value in form.multi_items():
                if name in values or (name == REFERENCE and data is not None):
                    raise ApiError(400, f"{name} is there twice", "invalid_request", name)
                if isinstance(value, UploadFile):
                    data = await _read_file(name, value)
                elif name in STRUCTURED:
                    values[name] = _parse(value.encode(), name)
                elif name == f"{REFERENCE}[image_url]":
                    values[REFERENCE] = {"image_url": value}
                else:
                    values[name] = value
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise ApiError(400, "the form can't be read", "invalid_request") from error
    return VideoRequest.model_validate(values), data


async def _read_file(name: str, file: UploadFile) -> bytes:
    if name != REFERENCE:
        raise ApiError(400, f"{name} takes no file; {REFERENCE} does", "invalid_request", name)
    return await file.read()


def _parse(text: bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"{what} is no JSON", "invalid_request") from error


def documented_body() -> dict[str, Any]:
    """For the OpenAPI document."""
    schema = {"$ref": "#/components/schemas/VideoRequest"}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema},
                FORMS[0]: {"schema": {"$ref": "#/components/schemas/VideoForm"}},
            },
        }
    }
