"""Logs: whoever reads them knows whom they are about."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from longtake.launch.logs import log_to, logged_as

logger = logging.getLogger("longtake.launch.anything")


@pytest.fixture(autouse=True)
def no_handler_stays() -> Iterator[None]:
    package = logging.getLogger("longtake")
    before, level = package.handlers[:], package.level
    yield
    package.handlers[:] = before
    package.setLevel(level)


def test_json_has_ids_and_traces() -> None:
    out = io.StringIO()
    log_to(out, "json")
    with logged_as(job="video_1"), logged_as(epoch=2):
        logger.warning("the disk is %s", "full")
        try:
            raise ValueError("why")
        except ValueError:
            logger.exception("it broke")
    logger.info("nobody")
    first, second, third = map(json.loads, out.getvalue().splitlines())
    assert first["message"] == "the disk is full" and first["level"] == "warning"
    assert (first["job"], first["epoch"]) == ("video_1", "2")
    assert first["logger"] == "longtake.launch.anything" and first["time"].endswith("Z")
    assert "ValueError: why" in second["trace"]
    assert "job" not in third


def test_text_has_ids() -> None:
    out = io.StringIO()
    log_to(out, "text")
    with logged_as(worker="cpu0"):
        logger.info("here")
    assert out.getvalue().endswith(" INFO worker cpu0: here\n")
