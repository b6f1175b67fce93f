"""The token of Ray clusters: who has it may run anything there, so who has not must stay out."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from longtake.runtime.durable import disk_errors

MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"


def token_file() -> Path:
    """Where Ray looks for it."""
    named = os.environ.get(f"{TOKEN}_PATH")
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def make_token() -> str | None:
    """The token that is there, or a new one; None where the environment wants none.

    Raises:
        DiskError: it can't be kept.
    """
    if os.environ.get(MODE, "token") != "token":
        return None
    if TOKEN in os.environ:
        return os.environ[TOKEN]
    path = token_file()
    if not path.is_file():
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(32))
    return path.read_text().strip()


def use_token() -> None:
    """Let Ray, which is not loaded yet, show the token to clusters that are named by address; it
    does so by itself to that of this host alone."""
    if TOKEN in os.environ or token_file().is_file():
        os.environ.setdefault(MODE, "token")
