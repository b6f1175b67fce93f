"""How far a run is, and how long it will still take."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """A moment of a run. Times in seconds; `frames` are pixel frames already in the output.

    `blocks`, `total_frames` and `seconds_left` are None for an endless stream; `frames_per_second`
    counts from the start of the run.
    """

    stage: str
    block: int
    blocks: int | None
    frames: int
    total_frames: int | None
    frames_per_second: float
    elapsed: float
    seconds_left: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, rounded for reading."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass
class Forecast:
    """Time left from the measured pace of every lane.

    The lanes work side by side, so what is left is the slowest lane's rest, and after it the last
    parcel of each lane that follows.
    """

    work: dict[str, float]  # total units of each lane, in the order of the lanes
    parcel: dict[str, float]  # units that a lane is handed at once
    done: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def note(self, lane: str, units: float, seconds: float) -> None:
        """A lane did `units` more in `seconds`."""
        self.done[lane] = self.done.get(lane, 0.0) + units
        self.seconds[lane] = self.seconds.get(lane, 0.0) + seconds

    def seconds_left(self) -> float | None:
        """None until every lane has shown its pace."""
        if any(self.done.get(lane, 0.0) <= 0 for lane in self.work):
            return None
        pace = {lane: self.seconds[lane] / self.done[lane] for lane in self.work}
        left = {lane: max(0.0, self.work[lane] - self.done[lane]) for lane in self.work}
        end, after = 0.0, 0.0
        for lane in reversed(self.work):
            if left[lane] > 0:
                end = max(end, left[lane] * pace[lane] + after)
            after += min(self.parcel[lane], left[lane]) * pace[lane]
        return end
