"""How a run is told: a live line in a terminal, plain lines elsewhere, JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import rich.progress
from rich.console import Console

from longtake.runtime.progress import Progress

JSON_SECONDS = 0.5  # progress is told no more often than this
LINE_SECONDS = 5.0


class Display(Protocol):
    """Where the story of a run goes. Calls come one at a time."""

    def begin(self, sentence: str, facts: Mapping[str, Any]) -> None:
        """The run begins: as a sentence for people, as facts for programs."""

    def update(self, progress: Progress) -> None:
        """The run has come so far."""

    def warn(self, sentence: str) -> None:
        """Something the user should know."""

    def note(self, event: str, text: str, facts: Mapping[str, Any]) -> None:
        """Something the user asked for, in lines for people."""

    def end(self, event: str, sentence: str, facts: Mapping[str, Any]) -> None:
        """The run is over: `event` is done, stopped or error."""


def make_display(as_json: bool) -> Display:
    """JSON on stdout if asked for, else people's words: live if stderr is a terminal."""
    if as_json:
        return JsonDisplay()
    console = Console(stderr=True)
    return LiveDisplay(console) if console.is_terminal else LineDisplay()


class JsonDisplay:
    """One JSON object a line on stdout, with its kind as `event`."""

    def __init__(self) -> None:
        self._told = -JSON_SECONDS

    def begin(self, sentence: str, facts: Mapping[str, Any]) -> None:
        self._write("start", facts)

    def update(self, progress: Progress) -> None:
        last = progress.total_frames is not None and progress.frames == progress.total_frames
        if last or progress.elapsed - self._told >= JSON_SECONDS:
            self._told = progress.elapsed
            self._write("progress", progress.to_dict())

    def warn(self, sentence: str) -> None:
        self._write("warning", {"message": sentence})

    def note(self, event: str, text: str, facts: Mapping[str, Any]) -> None:
        self._write(event, facts)

    def end(self, event: str, sentence: str, facts: Mapping[str, Any]) -> None:
        self._write(event, {**facts, "message": sentence})
        if event == "error":
            sys.stderr.write(f"error: {sentence}\n")

    def _write(self, event: str, facts: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
        sys.stdout.flush()


class LineDisplay:
    """Plain lines on stderr, every five seconds or tenth of the video; the last one on stdout."""

    def __init__(self) -> None:
        self._seconds, self._tenth = 0.0, 0

    def begin(self, sentence: str, facts: Mapping[str, Any]) -> None:
        self._write(sentence)

    def update(self, progress: Progress) -> None:
        tenth = 10 * progress.frames // progress.total_frames if progress.total_frames else 0
        if tenth > self._tenth or progress.elapsed - self._seconds >= LINE_SECONDS:
            self._seconds, self._tenth = progress.elapsed, tenth
            self._write(describe(progress))

    def warn(self, sentence: str) -> None:
        self._write(f"warning: {sentence}")

    def note(self, event: str, text: str, facts: Mapping[str, Any]) -> None:
        self._write(text)

    def end(self, event: str, sentence: str, facts: Mapping[str, Any]) -> None:
        if event == "done":
            sys.stdout.write(sentence + "\n")
        else:
            self._write(f"{event}: {sentence}")

    def _write(self, sentence: str) -> None:
        sys.stderr.write(sentence + "\n")
        sys.stderr.flush()


class LiveDisplay(LineDisplay):
    """A bar that stays at the bottom of a terminal, with lines above it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("load", total=None, state="")

    def begin(self, sentence: str, facts: Mapping[str, Any]) -> None:
        super().begin(sentence, facts)
        self._bar.start()

    def update(self, progress: Progress) -> None:
        self._bar.update(
            self._task,
            description=f"{progress.stage:7}",
            completed=progress.frames,
            total=progress.total_frames,
            state=describe(progress),
        )

    def end(self, event: str, sentence: str, facts: Mapping[str, Any]) -> None:
        self._bar.stop()
        super().end(event, sentence, facts)

    def _write(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)


class LogToDisplay(logging.Handler):
    """Warnings of the package go where the rest of the story goes."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.warn(record.getMessage())


def describe(progress: Progress) -> str:
    """A moment of a run in words.

    The time left covers all that is still to be done, decoding and writing too.
    """
    blocks = "" if progress.blocks is None else f"/{progress.blocks}"
    frames = "" if progress.total_frames is None else f"/{progress.total_frames}"
    words = [
        f"block {progress.block + 1}{blocks}",
        f"{progress.frames}{frames} frames",
        f"{progress.frames_per_second:.1f} frames/s",
        f"{clock(progress.elapsed)} elapsed",
    ]
    if progress.seconds_left is not None:
        words.append(f"{clock(progress.seconds_left)} left")
    return ", ".join(words)


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
