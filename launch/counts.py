"""What the central scheduler has counted since it started."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from longtake.launch.fleet import Message
from longtake.launch.groups import Assigned
from longtake.scheduler.tally import Load


@dataclass
class Counts:
    """See `cluster_view.Figures`."""

    ended: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    survived: int = 0
    preemptions: int = 0
    blocks: int = 0
    video_seconds: float = 0.0
    busy_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    waited: dict[str, float] = field(default_factory=dict)
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)

    def leave(self, assigned: Assigned, told: Message) -> None:
        """A group is through with a job; `told` is its last word on it."""
        self.measure(assigned, told["loads"])
        self.busy_seconds += time.monotonic() - assigned.given_at
        for stage, seconds in told["stages"].items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds

    def measure(self, assigned: Assigned, loads: Mapping[str, Any]) -> None:
        """What the workers of a group tell of themselves, by rank, counted since its beginning."""
        for rank, told in loads.items():
            load, device = Load.from_dict(told), assigned.device_of(int(rank))
            before = assigned.loads.get(int(rank), Load())
            waited = load.waited - before.waited
            self.waited[device] = self.waited.get(device, 0.0) + waited
            for peer, size in load.sent.items():
                link = device, assigned.device_of(peer)
                self.sent[link] += size - before.sent.get(peer, 0)
            assigned.loads[int(rank)] = load
