"""Where a worker's time goes: computing, standing still on transfers, or nothing to do.

Of any list of actions, predicted or measured. Only a worker's main lane counts: what decodes and
writes beside it, in threads of its own, must not make it look busy while it waits. At each instant
of a window a worker is in exactly one of three states, so that `compute + exposed + idle == wall`:

- **exposed** communication: a WAIT action is running. The worker stands still until a transfer is
  over, be it because the link is slow or because the other worker is late.
- **compute**: a COMPUTE action is running, and no WAIT. A task that waits in its middle may
  therefore be one COMPUTE action with the WAIT inside.
- **idle**: neither.

Across these lies **hidden** communication: a TRANSFER that sends is running, and no WAIT. Actions
of one kind that overlap count once: two transfers at a time for one second are one second.

A transfer of 0 bytes only receives. It begins when the receive is posted, which may be long before
the other worker has anything to send, so it says nothing about the link and never counts: between
two stages the sender's action is the transfer, and the receiver tells of it only by waiting. A hop
around a ring sends and receives at once, and counts on every worker. It begins when this worker is
ready for it, so where a neighbour is late, hidden communication is an upper bound. Exposed
communication never depends on any of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtake.scheduler.timeline import MAIN, Action, Activity

COLUMNS = ("worker", "wall", "compute", "exposed", "hidden", "idle", "communication hidden")


@dataclass(frozen=True)
class Usage:
    """Seconds of one worker, or with `+` of several workers or of windows that do not overlap."""

    compute: float = 0.0
    exposed: float = 0.0
    hidden: float = 0.0
    idle: float = 0.0

    @property
    def wall(self) -> float:
        """Length of the window in seconds."""
        return self.compute + self.exposed + self.idle

    @property
    def hidden_share(self) -> float | None:
        """The part of communication, 0 to 1, that cost no time; None where there was none."""
        communication = self.hidden + self.exposed
        return self.hidden / communication if communication else None

    def share(self, seconds: float) -> float:
        """Seconds as a part of the wall, 0 to 1; 0 in an empty window."""
        return seconds / self.wall if self.wall else 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.compute + other.compute,
            self.exposed + other.exposed,
            self.hidden + other.hidden,
            self.idle + other.idle,
        )


def counts(action: Action) -> bool:
    """Whether an action has a say in its worker's usage."""
    receives = action.activity is Activity.TRANSFER and action.bytes == 0
    return action.lane == MAIN and not receives


def usage_of(actions: Sequence[Action], start: float, stop: float) -> Usage:
    """Usage of one worker in the window `start` .. `stop`, in seconds of the actions' clock.

    What lies outside the window is cut off, so the usage of adjoining windows adds up.

    Raises:
        ValueError: the window, or an action, ends before it starts.
    """
    if not start <= stop:
        raise ValueError(f"a window of {start} .. {stop} ends before it starts")
    edges = {
        kind: np.clip(_edges([a for a in actions if a.activity is kind and counts(a)]), start, stop)
        for kind in Activity
    }
    cuts = np.unique(np.concatenate([[start, stop], *(e.ravel() for e in edges.values())]))
    compute, transfer, wait = (
        _running(edges[kind], cuts) for kind in (Activity.COMPUTE, Activity.TRANSFER, Activity.WAIT)
    )
    widths = np.diff(cuts)
    return Usage(
        compute=float(widths[compute & ~wait].sum()),
        exposed=float(widths[wait].sum()),
        hidden=float(widths[transfer & ~wait].sum()),
        idle=float(widths[~compute & ~wait].sum()),
    )


def usage_by_worker(actions: Iterable[Action]) -> dict[int, Usage]:
    """Usage of every worker in the window from the first start to the last stop of them all.

    The actions must be on one clock. Workers come in ascending order.
    """
    by_worker: dict[int, list[Action]] = {}
    for action in actions:
        by_worker.setdefault(action.worker, []).append(action)
    if not by_worker:
        return {}
    start = min(a.start for own in by_worker.values() for a in own)
    stop = max(a.stop for own in by_worker.values() for a in own)
    return {worker: usage_of(by_worker[worker], start, stop) for worker in sorted(by_worker)}


def usage_rows(usages: Mapping[int, Usage]) -> list[tuple[str, ...]]:
    """A row of text per worker under `COLUMNS`, and one of all workers where there are several."""
    rows = [_row(str(worker), usages[worker]) for worker in sorted(usages)]
    if len(usages) > 1:
        rows.append(_row("all", sum(usages.values(), Usage())))
    return rows


def _edges(actions: Sequence[Action]) -> NDArray[np.float64]:
    """Starts and stops, (N, 2)."""
    flat = np.array([edge for a in actions for edge in (a.start, a.stop)], dtype=np.float64)
    edges = flat.reshape(-1, 2)
    wrong = np.flatnonzero(~(edges[:, 0] <= edges[:, 1]))
    if wrong.size:
        raise ValueError(f"an action ends before it starts: {actions[wrong[0]]}")
    return edges


def _running(edges: NDArray[np.float64], cuts: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether any of the actions covers each piece between two neighbouring cuts."""
    begun, ended = (
        np.bincount(np.searchsorted(cuts, edges[:, side]), minlength=len(cuts)) for side in (0, 1)
    )
    return np.cumsum(begun - ended)[:-1] > 0


def _row(name: str, usage: Usage) -> tuple[str, ...]:
    parts = (usage.compute, usage.exposed, usage.hidden, usage.idle)
    hidden = usage.hidden_share
    return (
        name,
        f"{usage.wall:.2f} s",
        *(f"{seconds:.2f} s ({usage.share(seconds):.0%})" for seconds in parts),
        "-" if hidden is None else f"{hidden:.0%}",
    )
