"""A live stream against the clock: when frames come, by when they are due, and how they were shown.

Frame i of the output is made from frame i of the input. It is due so many seconds after that one
came, the latency budget. No frame is dropped or repeated: one that is not there when it is due is
late, and is counted.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from longtake.scheduler.plan import Plan
from longtake.scheduler.schedule import Schedule, Verdict
from longtake.scheduler.task import Kind

LOOK = 128  # blocks after which a schedule repeats itself


def least_latency(schedule: Schedule, plan: Plan, most: int = LOOK) -> float:
    """Seconds from when a frame comes until it could be shown, at most, if nothing took any time.

    A block begins once its last frame has come, and some blocks are decoded only after later ones
    have begun. `schedule` is walked, up to `most` blocks.
    """
    spec, fps = schedule.spec, schedule.request.fps
    begun = longest = 0

    def begin(block: int) -> Verdict:
        nonlocal begun
        if block < most:
            begun = spec.pixel_frames((block + 1) * spec.block_frames)
        return Verdict(go=block < most)

    for task in plan.parts(schedule.tasks(begin)):
        if task.kind is Kind.DECODE:
            longest = max(longest, begun - 1 - spec.pixel_frames(task.frames.start))
    return longest / fps


@dataclass
class Quantiles:
    """Durations in seconds, to a percent, in memory that does not grow with their number."""

    counts: dict[int, int] = field(default_factory=dict)

    LEAST = 1e-4  # seconds; what is shorter counts as none
    STEP = math.log(1.01)

    def add(self, seconds: float) -> None:
        """Take one more."""
        bin_ = round(math.log(seconds / self.LEAST) / self.STEP) if seconds >= self.LEAST else -1
        self.counts[bin_] = self.counts.get(bin_, 0) + 1

    def at(self, share: float) -> float:
        """The shortest duration that a `share` of all, 0 .. 1, don't exceed; 0 if there is none."""
        wanted, found = share * sum(self.counts.values()), 0
        for bin_ in sorted(self.counts):
            found += self.counts[bin_]
            if found >= wanted:
                return 0.0 if bin_ < 0 else self.LEAST * math.exp(bin_ * self.STEP)
        return 0.0


@dataclass(frozen=True)
class LiveReport:
    """How a live stream went. All in seconds but for counts and rates.

    Attributes:
        frames: that were made.
        frames_per_second: from the first that is shown to the last. A frame is shown when it is
            due, or when it is made if that is later.
        budget: from when a frame comes until it is due.
        late: frames that came out after that.
        first_frame: from when the first frame came until it was made.
        latency_p50, latency_p99: from when a frame came until it was made.
        jitter_p50, jitter_p99: by how much the time between two frames that are shown differs from
            that between the next two.
        burst_p50, burst_p99: the same between frames that are made, a block at a time.
        camera_waited: for the maker, which had as many frames before it as are kept.
    """

    frames: int
    frames_per_second: float
    budget: float
    late: int
    first_frame: float
    latency_p50: float
    latency_p99: float
    jitter_p50: float
    jitter_p99: float
    burst_p50: float
    burst_p99: float
    camera_waited: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values, rounded to a tenth of a millisecond."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def describe(self) -> str:
        """For people, in one line."""
        waited = (
            f"; the maker was too slow: the camera waited {self.camera_waited:.1f} s for it"
            if self.camera_waited > 0.05
            else ""
        )
        return (
            f"live: {self.frames_per_second:.1f} frames/s; {self.late} of {self.frames} frames "
            f"late, due {self.budget:.2f} s after their input; latency p50 {self.latency_p50:.2f} "
            f"s, p99 {self.latency_p99:.2f} s, of the first frame {self.first_frame:.2f} s; jitter "
            f"p50 {1000 * self.jitter_p50:.0f} ms, p99 {1000 * self.jitter_p99:.0f} ms{waited}"
        )


@dataclass
class Intervals:
    """How evenly frames follow each other."""

    jitter: Quantiles = field(default_factory=Quantiles)
    _latest: float | None = None
    _interval: float | None = None

    def add(self, at: float) -> None:
        """A frame, at this time."""
        if self._latest is not None:
            interval = at - self._latest
            if self._interval is not None:
                self.jitter.add(abs(interval - self._interval))
            self._interval = interval
        self._latest = at


class Pace:
    """What is told of one live stream: `came` for every frame of the input, `made` for every frame
    of the output, in order. Times are of one clock, in seconds."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self._coming: deque[float] = deque()  # when those came that are in the making
        self._first: tuple[float, float] | None = None  # when the first was shown, its latency
        self._last = 0.0
        self._frames = self._late = 0
        self._latency = Quantiles()
        self._made, self._shown = Intervals(), Intervals()
        self.camera_waited = 0.0

    def came(self, at: float) -> None:
        """A frame of the input came."""
        self._coming.append(at)

    def made(self, at: float) -> None:
        """The next frame of the output is there; one that no input came for does not count."""
        if not self._coming:
            return
        came = self._coming.popleft()
        latency = at - came
        self._last = max(at, came + self.budget)
        if self._first is None:
            self._first = (self._last, latency)
        self._frames += 1
        self._late += latency > self.budget
        self._latency.add(latency)
        self._made.add(at)
        self._shown.add(self._last)

    def report(self) -> LiveReport:
        """How it went so far."""
        start, first = (self._last, 0.0) if self._first is None else self._first
        took = self._last - start
        return LiveReport(
            frames=self._frames,
            frames_per_second=(self._frames - 1) / took if took > 0 else 0.0,
            budget=self.budget,
            late=self._late,
            first_frame=first,
            latency_p50=self._latency.at(0.5),
            latency_p99=self._latency.at(0.99),
            jitter_p50=self._shown.jitter.at(0.5),
            jitter_p99=self._shown.jitter.at(0.99),
            burst_p50=self._made.jitter.at(0.5),
            burst_p99=self._made.jitter.at(0.99),
            camera_waited=self.camera_waited,
        )
