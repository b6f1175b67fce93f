"""What is around every request: a number, who may ask from where, headers, counting and a log."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longtake.launch.server.auth import check_host, check_origin
from longtake.launch.server.errors import ApiError
from longtake.launch.server.services import Services

logger = logging.getLogger(__name__)

PAUSE = 30.0  # seconds between two pieces of a body
SAFE = ("GET", "HEAD", "OPTIONS")
METHODS = (*SAFE, "POST", "DELETE")  # that are counted by name; clients may send any word
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "media-src 'self' blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
}


class Frame:
    """The outermost layer of the server."""

    def __init__(self, app: ASGIApp, services: Services, max_body: int) -> None:
        """`max_body` is the most bytes that a request may have."""
        self._app, self._services, self._max_body = app, services, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        told = _Told(scope)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                told.begin(message)
            await send(message)

        self._services.metrics.open.inc()
        try:
            self._check(scope)
            await self._app(scope, told.bounded(receive, self._max_body), tell)
        except ApiError as refusal:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 4403, "reason": refusal.message})
            else:
                await refusal.reply()(scope, receive, tell)
        finally:
            self._services.metrics.open.dec()
            if scope["type"] == "http":
                route = getattr(scope.get("route"), "path", "") or "other"
                method = scope["method"] if scope["method"] in METHODS else "other"
                metrics = self._services.metrics
                metrics.answered(method, route, told.status, told.first_byte)
            looked = scope.get("method") in SAFE and told.status < 400  # pages look all the time
            logger.log(
                logging.DEBUG if looked else logging.INFO, "answered", extra={"about": told.facts()}
            )

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._services.local_only:
            check_host(headers)
        if scope["type"] == "websocket" or scope["method"] not in SAFE:
            check_origin(headers, self._services.origins)


class _Told:
    """What is noted of a request."""

    def __init__(self, scope: Scope) -> None:
        self._scope, self._start = scope, time.monotonic()
        self.id = scope["request_id"] = secrets.token_hex(8)
        self.status, self.first_byte = 0, 0.0

    def begin(self, message: Message) -> None:
        """An answer begins."""
        self.status, self.first_byte = message["status"], time.monotonic() - self._start
        headers = MutableHeaders(scope=message)
        headers["X-Request-Id"] = self.id
        for name, value in HEADERS.items():
            headers.setdefault(name, value)

    def bounded(self, receive: Receive, most: int) -> Receive:
        """Receive, but give up on a body that is too large, or too long in coming."""
        if self._scope["type"] != "http":
            return receive
        told = Headers(scope=self._scope).get("content-length", "")
        left = most
        heard = False

        async def hear() -> Message:
            nonlocal left, heard
            if heard:  # what is awaited now is the end of the connection
                return await receive()
            if told.isdecimal() and int(told) > most:
                raise _too_large(most)
            try:
                async with asyncio.timeout(PAUSE):
                    message = await receive()
            except TimeoutError as error:
                raise ApiError(408, "the body of the request did not come", "timeout") from error
            left -= len(message.get("body", b""))
            if left < 0:
                raise _too_large(most)
            heard = not message.get("more_body", False)
            return message

        return hear

    def facts(self) -> dict[str, Any]:
        """For the log."""
        told = {
            "request": self.id,
            "owner": self._scope.get("owner"),
            "method": self._scope.get("method", "WEBSOCKET"),
            "path": self._scope["path"],
            "status": self.status or None,
            "seconds": round(time.monotonic() - self._start, 4),
        }
        return {name: fact for name, fact in told.items() if fact is not None}


def _too_large(most: int) -> ApiError:
    words = f"the request has more than the {most} bytes that this server takes"
    return ApiError(413, words, "too_large")
