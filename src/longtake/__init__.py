"""Longtake: minutes of coherent video from a prompt, on one GPU or many."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.launch.api import generate as generate
    from longtake.launch.api import resume as resume
    from longtake.launch.api import stream as stream
    from longtake.launch.crew import WorkerLost as WorkerLost
    from longtake.launch.run import Result as Result
    from longtake.launch.stream import Stream as Stream
    from longtake.launch.streams import Streams as Streams
    from longtake.launch.streams import streams as streams
    from longtake.scheduler.errors import UserError as UserError

__version__ = "0.1.0"

_HOMES = {
    "Result": "longtake.launch.run",
    "Stream": "longtake.launch.stream",
    "Streams": "longtake.launch.streams",
    "UserError": "longtake.scheduler.errors",
    "WorkerLost": "longtake.launch.crew",
    "generate": "longtake.launch.api",
    "resume": "longtake.launch.api",
    "stream": "longtake.launch.api",
    "streams": "longtake.launch.streams",
}


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is first asked for: `longtake.scheduler` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'longtake' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
