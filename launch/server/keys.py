"""API keys: made here, shown once, and kept as hashes."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from longtake.scheduler.errors import UserError

KEYS = "keys.json"  # in the folder of a server
PREFIX = "lt"
_NO_DIGEST = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Limits:
    """What a key may ask for; None: as much as it likes.

    Attributes:
        jobs: videos that wait or are being made at the same time.
        seconds: length of a video.
        seconds_per_day: length of all videos of any 24 hours.
        requests_per_minute: of any kind.
        interactive: whether its jobs may go before those of priority `batch`.
    """

    jobs: int | None = None
    seconds: float | None = None
    seconds_per_day: float | None = None
    requests_per_minute: int | None = None
    interactive: bool = True

    def __post_init__(self) -> None:
        for name in ("jobs", "seconds", "seconds_per_day", "requests_per_minute"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"the limit {name} must be more than 0, got {value:g}")

    def describe(self) -> str:
        """In words."""
        told = {
            "jobs": "{:g} videos at a time",
            "seconds": "{:g} s each",
            "seconds_per_day": "{:g} s a day",
            "requests_per_minute": "{:g} requests a minute",
        }
        words = [
            form.format(value) for name, form in told.items() if (value := getattr(self, name))
        ]
        words += [] if self.interactive else ["batch only"]
        return ", ".join(words) or "no limits"


@dataclass(frozen=True)
class Key:
    """A key without its secret. `id` is the owner of the jobs that are made with it."""

    id: str
    name: str
    digest: str
    created_at: float
    limits: Limits
    revoked_at: float | None = None


class KeyFile:
    """The keys of a server, in a file that is read again when it has changed. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._keys: dict[str, Key] = {}
        self._stamp: tuple[int, int] | None = None

    def find(self, secret: str) -> Key | None:
        """The key that somebody presents; None if it is not known, or not any more.

        The secret is 256 random bits, so one round of SHA-256 protects it. Ids are no secret; the
        hashes are compared in constant time, also where there is no such id.
        """
        parts = secret.split("_", 2)
        key = self.all().get(parts[1]) if len(parts) == 3 else None
        digest = _NO_DIGEST if key is None else key.digest
        same = hmac.compare_digest(digest, _digest(secret))
        return key if same and key is not None and key.revoked_at is None else None

    def all(self) -> Mapping[str, Key]:
        """All keys by id, revoked ones too.

        Raises:
            UserError: the file is damaged.
        """
        with self._lock:
            self._refresh()
            return self._keys

    def add(self, name: str, limits: Limits = Limits()) -> str:
        """Make a key; returns what its user must present, which can't be told again."""
        id_ = secrets.token_hex(4)
        secret = f"{PREFIX}_{id_}_{secrets.token_urlsafe(32)}"
        key = Key(id_, name, _digest(secret), time.time(), limits)
        self._change({**self.all(), id_: key})
        return secret

    def revoke(self, id_: str) -> Key:
        """Refuse a key from now on; raises UserError if there is none."""
        keys = self.all()
        if id_ not in keys:
            raise UserError(f"there is no key {id_!r}; known: {', '.join(keys) or 'none'}")
        revoked = replace(keys[id_], revoked_at=time.time())
        self._change({**keys, id_: revoked})
        return revoked

    def _change(self, keys: Mapping[str, Key]) -> None:
        told = json.dumps([asdict(key) for key in keys.values()], indent=1)
        part = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(told)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._path)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error

    def _refresh(self) -> None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._keys, self._stamp = {}, None
            return
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp != self._stamp:
            try:
                told = json.loads(self._path.read_text("utf-8"))
                self._keys = {entry["id"]: _key(entry) for entry in told}
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self._path} is no file of keys, or damaged: {error}") from error
            self._stamp = stamp


def _key(entry: Mapping[str, Any]) -> Key:
    known = {field.name for field in fields(Key)}
    values = {name: value for name, value in entry.items() if name in known}
    return Key(**{**values, "limits": Limits(**entry["limits"])})


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
