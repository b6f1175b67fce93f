"""Logs of the processes of a cluster: lines for people, or JSON, with ids of who it is about."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

FORMATS = ("text", "json")
_about: ContextVar[dict[str, str]] = ContextVar("about")


@contextmanager
def logged_as(**ids: object) -> Iterator[None]:
    """While entered, what this thread logs is about these: job, epoch, worker, request, ..."""
    known = {name: str(id_) for name, id_ in ids.items()}
    token = _about.set({**_about.get({}), **known})
    try:
        yield
    finally:
        _about.reset(token)


def log_to(stream: TextIO, form: str, level: int = logging.INFO) -> None:
    """Log what the package has to say there, as `text` or `json`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(_note_ids)
    logger = logging.getLogger("longtake")
    logger.addHandler(handler)
    logger.setLevel(level)


class TextFormatter(logging.Formatter):
    """Such as `2026-05-04 10:00:00 warning video_1 worker cpu0: the disk is full`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s%(ids)s: %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        ids = getattr(record, "about", {})
        record.ids = "".join(f" {name} {id_}" for name, id_ in ids.items())
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, ids, and a trace if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told = {
            "time": f"{at}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told)


def _note_ids(record: logging.LogRecord) -> bool:
    if not hasattr(record, "about"):
        record.about = _about.get({})
    return True
