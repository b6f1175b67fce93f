"""A run's predicted and measured seconds side by side, by kind of action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from longtake.launch.plan_tables import bytes_text
from longtake.scheduler.prediction import Prediction

WAITING = "communication"  # what rank 0 stands still for; part of the other kinds
GREETINGS = ("barrier", "warm-up")  # transfers that only see who is there; nothing predicts them


@dataclass(frozen=True)
class Compared:
    """Seconds of a kind of action, or bytes; None where one side knows nothing of it.

    Beside another lane on the same cores, both sides hold what it takes there and then.
    """

    kind: str
    predicted: float | None
    measured: float | None

    @property
    def error(self) -> float | None:
        """Of the prediction, as a part of what was measured."""
        if self.predicted is None or not self.measured:
            return None
        return self.predicted / self.measured - 1

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "error": self.error}


@dataclass(frozen=True)
class Comparison:
    """All kinds of actions of rank 0, the whole run, and the bytes that all workers sent."""

    kinds: tuple[Compared, ...]
    total: Compared
    sent: Compared

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kinds": [each.to_dict() for each in self.kinds],
            "total": self.total.to_dict(),
            "bytes": self.sent.to_dict(),
        }

    def ratio(self, *kinds: str) -> float | None:
        """Measured to predicted seconds of some kinds together; None where one side has none."""
        known = [e for e in self.kinds if e.kind in kinds and e.predicted and e.measured]
        if not known:
            return None
        return sum(e.measured or 0 for e in known) / sum(e.predicted or 0 for e in known)

    def describe(self) -> str:
        """In a line, such as `3.9 for 4.2 s (-7%), denoise 3.1 for 3.3 s (-6%)`."""
        told = [_told("", self.total)]
        told += [_told(f"{each.kind} ", each) for each in self.kinds if each.error is not None]
        if self.sent.predicted is not None and self.sent.measured:
            sizes = bytes_text(self.sent.predicted), bytes_text(self.sent.measured)
            told.append(f"sent {sizes[0]} for {sizes[1]}")
        return ", ".join(told)


def _told(name: str, each: Compared) -> str:
    assert each.predicted is not None and each.measured is not None and each.error is not None
    return f"{name}{each.predicted:.3g} for {each.measured:.3g} s ({each.error:+.0%})"


def predicted_facts(found: Prediction, by: str) -> dict[str, Any]:
    """What a manifest keeps of a prediction; `by` what it was made."""
    first = next(iter(found.lanes.values()))
    waits = first.exposed + (first.bubble if len(found.lanes) > 1 else 0.0)
    kinds = {str(kind): round(seconds, 6) for kind, seconds in found.timeline.seconds.items()}
    if found.workers > 1:
        kinds[WAITING] = round(waits, 6)
    return {
        "by": by,
        "seconds": round(found.seconds, 6),
        "kinds": kinds,
        "bytes": found.bytes if found.workers > 1 else None,
    }


def compare(predicted: Mapping[str, Any], run: Mapping[str, Any]) -> Comparison:
    """Lay `predicted_facts` beside what a manifest tells of a run."""
    expected: Mapping[str, float] = predicted["kinds"]
    measured = {kind: found["seconds"] for kind, found in run["timeline"].items()}
    if run.get("waited") is not None:
        measured[WAITING] = run["waited"]
    kinds = tuple(
        Compared(kind, expected.get(kind), measured.get(kind))
        for kind in sorted({*expected, *measured})
    )
    sent = run.get("sent")
    if sent is not None:
        sent = sum(size for name, size in sent.items() if not name.endswith(GREETINGS))
    return Comparison(
        kinds,
        Compared("total", predicted["seconds"], run["seconds"]),
        Compared("bytes", predicted["bytes"], sent),
    )
