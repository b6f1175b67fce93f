"""Requests that make no sense are refused in one line."""

from __future__ import annotations

import math
from typing import Any

import pytest

from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue, Request

CUES = (Cue(0, "a red circle"),)
GOOD: dict[str, Any] = {"cues": CUES, "seconds": 5.0, "height": 64, "width": 64, "fps": 16}


def two(first: float, second: float) -> tuple[Cue, ...]:
    return (Cue(first, "one"), Cue(second, "two"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cues": ()}, "the prompt is empty; say what the video should show"),
        ({"cues": (Cue(0, " \n"),)}, "the prompt is empty; say what the video should show"),
        ({"seconds": 0.0}, "seconds must be a positive number, got 0"),
        ({"seconds": -2.5}, "seconds must be a positive number, got -2.5"),
        ({"seconds": math.nan}, "seconds must be a positive number, got nan"),
        ({"seconds": math.inf}, "seconds must be a positive number, got inf"),
        ({"fps": 0}, "fps must be at least 1, got 0"),
        ({"guidance": 0.5}, "guidance must be at least 1 (1 turns it off), got 0.5"),
        ({"guidance": math.nan}, "guidance must be at least 1 (1 turns it off), got nan"),
        ({"guidance": math.inf}, "guidance must be at least 1 (1 turns it off), got inf"),
        (
            {"seconds": 0.03},
            "0.03 seconds at 16 fps is not one frame; ask for at least 0.0625 seconds",
        ),
        ({"cues": two(1, 2)}, "the first prompt must start at 0 seconds, not at 1"),
        ({"cues": two(0, 0)}, "prompts must be in order of time: 0 s comes after 0 s"),
        ({"cues": two(0, -1)}, "prompts must be in order of time: -1 s comes after 0 s"),
        ({"cues": two(0, math.nan)}, "prompts must be in order of time: nan s comes after 0 s"),
        ({"cues": two(0, 5)}, "a prompt starts at 5 s, but the video ends at 5 s"),
        (
            {"cues": two(0, math.inf), "seconds": None},
            "a prompt must start at a finite time, not at inf s",
        ),
    ],
)
def test_mistakes_are_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Request(**GOOD | change)
    assert str(caught.value) == message


def test_frames_are_seconds_times_the_frame_rate() -> None:
    assert Request(**GOOD).pixel_frames == 80
    assert Request(**GOOD | {"fps": 24}).pixel_frames == 120


def test_an_endless_request_has_no_number_of_frames() -> None:
    with pytest.raises(ValueError, match="endless"):
        _ = Request(**GOOD | {"seconds": None}).pixel_frames
