"""What the central scheduler has counted since it started."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from longtake.launch.groups import Assigned


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

    def leave(self, assigned: Assigned, stages: Mapping[str, float]) -> None:
        """A group is through with a job, for which it spent seconds in stages."""
        self.busy_seconds += time.monotonic() - assigned.given_at
        for stage, seconds in stages.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds
