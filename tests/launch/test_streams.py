"""Several streams at once from Python: each as alone; who joins, leaves, is late or too much."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import pytest

from longtake.launch.api import stream
from longtake.launch.streams import Streams, streams
from longtake.scheduler.errors import UserError

PROMPT = "a large red circle bouncing around slowly on a gray background"
OTHER = "a small blue square standing still on a pink background"
SMALL: dict[str, Any] = {"steps": 2, "size": "32x32"}


def moving(frames: int | None = None) -> Iterator[np.ndarray]:
    """A bright bar that wanders."""
    for index in count() if frames is None else range(frames):
        picture = np.full((32, 32, 3), 100, np.uint8)
        picture[:, index % 32] = 255
        yield picture


@pytest.fixture(scope="module")
def pair() -> Iterator[Streams]:
    """Room for two."""
    with streams(seats=2, **SMALL) as room:
        yield room


def test_two_streams_are_as_alone_to_rounding(pair: Streams) -> None:
    with pair.join(PROMPT, seconds=2, seed=1) as one:
        other = pair.join(OTHER, input_video=moving(40), seed=2)
        made = [np.stack(list(one)), np.stack(list(other))]
    alone = []
    for prompt, asked in (
        (PROMPT, {"seconds": 2, "seed": 1}),
        (OTHER, {"input_video": moving(40), "seed": 2}),
    ):
        with stream(prompt, strategy="stream", **SMALL, **asked) as frames:
            alone.append(np.stack(list(frames)))
    for mine, true in zip(made, alone, strict=True):
        assert mine.shape == true.shape
        assert np.abs(mine.astype(int) - true).max() <= 1


def test_streams_come_and_go_and_prompts_change(pair: Streams) -> None:
    first = pair.join(PROMPT)
    assert len(list(islice(first, 30))) == 30
    with pair.join(OTHER) as second:
        assert len(list(islice(second, 10))) == 10
        with pytest.raises(UserError, match="all 2 seats are taken"):
            pair.join(PROMPT)
        assert second.switch(PROMPT) > 0
    assert next(second, None) is None  # it was closed
    third = pair.join(OTHER)
    assert len(list(islice(third, 10))) == 10
    first.close()
    third.close()


def test_a_stream_that_nobody_watches_holds_up_nobody(pair: Streams) -> None:
    idle = pair.join(PROMPT)
    busy = pair.join(OTHER)
    assert len(list(islice(busy, 150))) == 150
    idle.close()
    busy.close()


def test_a_camera_that_fails_ends_its_own_stream(pair: Streams) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield from moving(30)
        raise RuntimeError("the cable is out")

    other = pair.join(PROMPT)
    one = pair.join(PROMPT, input_video=broken())
    with pytest.raises(RuntimeError, match="the cable is out"):
        list(one)
    assert len(list(islice(other, 60))) == 60
    other.close()


def test_a_live_stream_tells_how_late_it_is_and_others_may_not_make_it_late(pair: Streams) -> None:
    one = pair.join(PROMPT)
    live = pair.join(OTHER, input_video=moving(33), live=True, latency=60.0)
    assert len(list(live)) == 33
    report = live.report
    assert report is not None and report.frames == 33 and report.budget == 60
    assert report.first_frame >= 20 / 16  # two blocks of its input
    one.close()
    pair._batch.launch_times.note(1, 1.0)  # from now on, launches seem to take too long
    with pytest.raises(UserError, match="1 live streams would be late here: a launch of them all"):
        pair.join(OTHER, input_video=moving(33), live=True)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"seats": 0}, "at least 1 seat, got 0"),
        ({"strategy": "causal"}, "the strategy causal can't share launches"),
        ({"settings": ["strategy.likeness=0.5"]}, "can't renew their sinks"),
        ({"settings": ["parallel.workers=2"]}, "streams are made by one worker, got"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        streams(**{**SMALL, **asked})
