"""Who asks, and what they may: keys, origins and hosts."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from longtake.launch.server.errors import ApiError
from longtake.launch.server.keys import KeyFile, Limits
from longtake.launch.server.quotas import Rates
from longtake.scheduler.errors import UserError

ANYONE = "anyone"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Caller:
    """The owner of what is made, and how much of it there may be."""

    owner: str
    limits: Limits


class Door:
    """Lets in who presents a key, or everybody where there are `keys` of None."""

    def __init__(self, keys: KeyFile | None, limits: Limits) -> None:
        """`limits` hold for everybody, besides those of each key."""
        self._keys, self._limits, self._rates = keys, limits, Rates()

    @property
    def open(self) -> bool:
        """Whether no key is needed."""
        return self._keys is None

    def caller(self, authorization: str | None) -> Caller:
        """Who sends this header; one request is counted.

        Raises:
            ApiError: 401 without a known key, 429 where it has been used too often.
        """
        caller = self._known(authorization)
        self._rates.take(caller.owner, caller.limits)
        return caller

    def _known(self, authorization: str | None) -> Caller:
        if self._keys is None:
            return Caller(ANYONE, self._limits)
        scheme, _, secret = (authorization or "").partition(" ")
        try:
            key = self._keys.find(secret.strip()) if scheme.lower() == "bearer" else None
        except UserError as error:  # the operator's, not this user's
            raise RuntimeError(f"keys can't be checked: {error}") from error
        if key is None:
            raise ApiError(
                401,
                "this server needs a known API key, as `Authorization: Bearer lt_...`",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return Caller(key.id, _tighter(self._limits, key.limits))


def check_origin(headers: Headers, allowed: Collection[str]) -> None:
    """Refuse what a page of another site makes a browser send; programs send no Origin.

    Raises:
        ApiError: 403.
    """
    origin = headers.get("origin")
    if origin is None or origin in allowed:
        return
    if urlsplit(origin).netloc != headers.get("host"):
        raise ApiError(403, f"pages of {origin[:100]} may not use this server", "origin_refused")


def check_host(headers: Headers) -> None:
    """Refuse other names than those of this machine, under which a foreign page could reach it.

    Raises:
        ApiError: 403.
    """
    host = urlsplit(f"//{headers.get('host', '')}").hostname
    if host not in LOOPBACK:
        raise ApiError(403, "this server is at localhost only", "host_refused")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that binds there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tighter(one: Limits, other: Limits) -> Limits:
    def least(name: str) -> float | None:
        given = [v for v in (getattr(one, name), getattr(other, name)) if v is not None]
        return min(given, default=None)

    jobs, rate = least("jobs"), least("requests_per_minute")
    return Limits(
        jobs=None if jobs is None else int(jobs),
        seconds=least("seconds"),
        seconds_per_day=least("seconds_per_day"),
        requests_per_minute=None if rate is None else int(rate),
        interactive=one.interactive and other.interactive,
    )
