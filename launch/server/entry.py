"""What endpoints ask for: the services, and who is at it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from longtake.launch.server.auth import Caller
from longtake.launch.server.services import Services

_bearer = HTTPBearer(auto_error=False, description="A key of `longtake serve keys add`.")


def _services(connection: HTTPConnection) -> Services:
    services: Services = connection.app.state.services
    return services


Here = Annotated[Services, Depends(_services)]


def _sent(
    sent: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> str | None:
    return None if sent is None else f"{sent.scheme} {sent.credentials}"


Sent = Annotated[str | None, Depends(_sent)]


def _caller(connection: HTTPConnection, services: Here, sent: Sent) -> Caller:
    caller = services.door.caller(sent)
    connection.scope["owner"] = caller.owner  # for the log
    return caller


Known = Annotated[Caller, Depends(_caller)]
