"""A live run: an input at its real rate, as of a camera, and a watch on when frames come out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, TypeVar

from longtake.runtime.lanes import Ahead
from longtake.runtime.source import Frame
from longtake.scheduler.pacing import LiveReport, Pace

Item = TypeVar("Item")
NOTICED = 1e-3  # seconds; a camera that waits for less does not wait


class Live:
    """The clock of a live run. The camera starts when its first frame is asked for.

    The camera never drops a frame, and keeps no more than `depth`: if the maker is slower than
    that, the camera waits for it, and frames come out ever later. All of it is told in the report.
    """

    def __init__(
        self,
        fps: float,
        budget: float,
        depth: int,
        clock: Callable[[], float] = monotonic,
        wait: Callable[[float], bool] | None = None,
        least: float = 0.0,
    ) -> None:
        """`budget` is how many seconds after a frame of the input its output is due, of which the
        schedule takes `least` even if nothing takes any time.

        `clock` is in seconds; `wait` takes so many, and is True when the run is over before.
        """
        self._fps, self._depth, self._clock = fps, depth, clock
        self._over = threading.Event()
        self._wait = self._over.wait if wait is None else wait
        self._pace = Pace(budget)
        self._start: float | None = None
        self.slack = budget - least
        self._lanes: list[Ahead[Any]] = []

    def camera(self, frames: Iterable[Frame], punctual: bool) -> Iterator[Frame]:
        """Frames, none sooner than a camera of the run's rate has it; in a thread.

        `punctual`: they are there in time, as a file's are; else an iterator that is late is what
        the real camera is.
        """
        return self._beside("camera", self.paced(frames, punctual), self._depth)

    def one_ahead(self, items: Iterator[Item]) -> Iterator[Item]:
        """Make items in a thread, while the one before is worked with."""
        return self._beside("encode", items, 1)

    def paced(self, frames: Iterable[Frame], punctual: bool) -> Iterator[Frame]:
        """See `camera`."""
        self._start = start = self._clock()
        for index, frame in enumerate(frames):
            got, due = self._clock(), start + index / self._fps
            if due > got and self._wait(due - got):
                return
            late = 0.0 if punctual else max(0.0, got - self._pace.camera_waited - due)
            self._pace.came(due + late)
            before = self._clock()
            yield frame
            stood = self._clock() - before
            self._pace.camera_waited += stood if stood > NOTICED else 0.0

    def comes(self, frame: int) -> float | None:
        """When a frame of the input comes, by the clock; None before the camera has started."""
        return None if self._start is None else self._start + frame / self._fps

    def made(self, frames: int) -> None:
        """So many frames of the output are there."""
        now = self._clock()
        for _ in range(frames):
            self._pace.made(now)

    def report(self) -> LiveReport:
        """How it went so far."""
        return self._pace.report()

    def close(self) -> None:
        """End the camera, and all that wait for it."""
        self._over.set()
        for lane in self._lanes:
            lane.close()

    def _beside(self, name: str, items: Iterator[Item], depth: int) -> Iterator[Item]:
        lane = Ahead(name, items, depth)
        self._lanes.append(lane)
        return lane
