"""How progress reads, and how often it is told."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from longtake.launch.progress import (
    Display,
    JsonDisplay,
    LineDisplay,
    LiveDisplay,
    clock,
    describe,
)
from longtake.runtime.progress import Progress

MOMENT = Progress(
    stage="denoise",
    block=2,
    blocks=80,
    frames=21,
    total_frames=960,
    frames_per_second=4.06,
    elapsed=61.0,
    seconds_left=3661.4,
)
ENDLESS = replace(MOMENT, blocks=None, total_frames=None, seconds_left=None)


def test_a_moment_in_words() -> None:
    assert describe(MOMENT) == (
        "block 3/80, 21/960 frames, 4.1 frames/s, 1:01 elapsed, 1:01:01 left"
    )
    assert describe(ENDLESS) == "block 3, 21 frames, 4.1 frames/s, 1:01 elapsed"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.6, "1:00:00"), (90000, "25:00:00")],
)
def test_clock(seconds: float, words: str) -> None:
    assert clock(seconds) == words


def run_of_100_s(display: Display, frames: int) -> None:
    for step in range(1001):
        display.update(replace(MOMENT, elapsed=step / 10, frames=frames * step // 1000))


def test_lines_come_every_five_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    run_of_100_s(LineDisplay(), 0)
    assert len(capsys.readouterr().err.splitlines()) == 20


def test_lines_come_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    display = LineDisplay()
    for frame in range(961):
        display.update(replace(MOMENT, elapsed=1.0, frames=frame))
    assert len(capsys.readouterr().err.splitlines()) == 10


def test_json_comes_twice_a_second_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    display = JsonDisplay()
    display.begin("begins", {"frames": 960})
    run_of_100_s(display, 959)
    display.update(replace(MOMENT, elapsed=100.01, frames=960))
    display.warn("careful")
    display.end("done", "made", {"path": "a.mp4"})
    start, *progress, warning, done = map(json.loads, capsys.readouterr().out.splitlines())
    assert start == {"event": "start", "frames": 960}
    assert len(progress) == 202 and progress[-1]["frames"] == 960
    assert warning == {"event": "warning", "message": "careful"}
    assert done == {"event": "done", "path": "a.mp4", "message": "made"}


def test_terminal_shows_one_moving_line(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    display = LiveDisplay(Console(file=screen, force_terminal=True, width=120))
    display.begin("960 frames [of] video", {})
    display.update(MOMENT)
    display.update(ENDLESS)
    display.warn("careful")
    display.end("done", "a.mp4: made", {})
    shown = screen.getvalue()
    assert "960 frames [of] video" in shown and "warning: careful" in shown
    assert "block 3, 21 frames" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor comes back
    assert capsys.readouterr().out == "a.mp4: made\n"
