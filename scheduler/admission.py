"""Which streams share a launch, and whether one more can: as many as meet their deadlines.

The SLO-aware batching of StreamDiffusionV2 (arXiv 2511.07399): a launch of more streams makes more
frames a second, and takes longer. So it grows only while each of them is through when it is due.
All times are in seconds on one clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Seconds = Callable[[int], float]  # what a launch of so many streams takes
PERIODS = 8  # after which streams that share launches meet again as before, or drift apart for good


@dataclass(frozen=True)
class Waiting:
    """A stream's next launch: from when on it can be, and by when it should be over.

    Both are `math.inf` where there is no telling, or no haste.
    """

    stream: int
    ready: float
    due: float


class LaunchTimes:
    """What launches took, by how many streams shared them; of the latest few, the longest."""

    LATEST = 16

    def __init__(self) -> None:
        self._measured: dict[int, deque[float]] = {}

    def note(self, streams: int, seconds: float) -> None:
        """A launch took so long."""
        self._measured.setdefault(streams, deque(maxlen=self.LATEST)).append(seconds)

    def seconds(self, streams: int) -> float:
        """What to expect; 0 while nothing is known.

        Of more streams than were measured it is in proportion, which is the worst that can be; of
        fewer, as of those.
        """
        longest = {number: max(times) for number, times in self._measured.items()}
        fewer = [number for number in longest if number <= streams]
        if not fewer:
            return min(longest.values(), default=0.0)
        most = max(fewer)
        return max(longest[number] for number in fewer) * streams / most


def next_launch(
    waiting: Sequence[Waiting], now: float, seconds: Seconds
) -> tuple[float, tuple[int, ...]]:
    """When to launch, and whom: the most streams such that none of all is late for it.

    If some must be, those that are launched are not, and what can't be in time any more waits until
    there is room for it. If nothing can be in time, all that are ready go, since that is how the
    most is made. At least one must be ready some time.
    """
    starts = sorted({max(now, each.ready) for each in waiting} - {math.inf})
    punctual = {w for w in waiting if max(now, w.ready) + seconds(1) <= w.due}
    for sparing in (True, False):
        best: tuple[float, list[Waiting]] = (starts[0], [])
        for start in starts:
            ready = sorted((w for w in waiting if w.ready <= start), key=lambda w: w.due)
            ready.sort(key=lambda w: w not in punctual)
            for size in range(len(ready), len(best[1]), -1):
                group, end = ready[:size], start + seconds(size)
                others = punctual.difference(group)
                in_time = all(end <= w.due for w in punctual.intersection(group))
                spared = all(max(end, w.ready) + seconds(1) <= w.due for w in others)
                if in_time and (spared or not sparing) and group[0] in punctual:
                    best = (start, group)
                    break
        if best[1]:
            return best[0], tuple(w.stream for w in best[1])
    return starts[0], tuple(w.stream for w in waiting if w.ready <= starts[0])


@dataclass(frozen=True)
class Beat:
    """A live stream: launches are ready at `first`, and every `period` after; due `slack` later."""

    first: float
    period: float
    slack: float


def sustained(beats: Sequence[Beat], seconds: Seconds) -> bool:
    """Whether launches of all these streams are in time, by `next_launch` and for good."""
    done = [0] * len(beats)  # launches of each
    now = min((beat.first for beat in beats), default=0.0)
    while any(number < PERIODS for number in done):
        waiting = []
        for stream, (beat, number) in enumerate(zip(beats, done, strict=True)):
            ready = beat.first + number * beat.period
            waiting.append(Waiting(stream, ready, ready + beat.slack))
        start, group = next_launch(waiting, now, seconds)
        now = start + seconds(len(group))
        if any(now > each.due for each in waiting if each.stream in group or each.ready < now):
            return False
        for stream in group:
            done[stream] += 1
    return True
