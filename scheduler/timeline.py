"""What ran, how often and how long. A predicted and a measured timeline are of one type."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from time import monotonic


@dataclass
class Timeline:
    """Seconds and counts by kind of action. Only totals are kept, so a long run stays small."""

    origin: float = field(default_factory=monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def note(self, name: str, seconds: float) -> None:
        """Count an action; lanes in other threads may do so at the same time."""
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            self.counts[name] = self.counts.get(name, 0) + 1

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return monotonic() - self.origin

    def summary(self) -> dict[str, dict[str, float]]:
        """Seconds and counts by name of action."""
        return {
            name: {"seconds": round(self.seconds[name], 3), "count": self.counts[name]}
            for name in sorted(self.seconds)
        }
