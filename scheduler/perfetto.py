"""Timelines as a file that https://ui.perfetto.dev and chrome://tracing open.

The format is the Trace Event Format's JSON: a process per worker, and in it tracks for computing,
waiting and transfers of its main lane, then those of its other lanes. The viewers show actions of
one track wrongly where they overlap without nesting, so such actions go to further tracks of the
same kind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from math import floor
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from longtake.scheduler.errors import UserError
from longtake.scheduler.timeline import MAIN, Action, Activity

Event = dict[str, Any]

_ORDER = (Activity.COMPUTE, Activity.WAIT, Activity.TRANSFER)
_ROOM = 1_000  # tracks of one kind, at most


class Process(NamedTuple):
    """The actions of one worker.

    Attributes:
        host: the name of its machine, in a prediction of its device.
        actions: in any order, all workers' on one clock.
        dropped: how many more there were, which the viewer then says.
    """

    worker: int
    host: str
    actions: Sequence[Action]
    dropped: int = 0


def write_trace(path: Path, processes: Iterable[Process], origin: float) -> None:
    """Write one file for all workers; a file of that name is replaced when all is written.

    One process is held at a time, so `processes` may be a generator that makes them one by one.

    Args:
        origin: the instant, in seconds of the actions' clock, that the viewer shows as 0.

    Raises:
        UserError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            with part.open("w", encoding="utf-8") as file:
                _write(file, (event for process in processes for event in _events(process, origin)))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the trace cannot be written to {path}: {reason}") from error


def _write(file: TextIO, events: Iterable[Event]) -> None:
    file.write('{"displayTimeUnit": "ms", "traceEvents": [')
    separator = "\n"
    for event in events:
        file.write(separator + json.dumps(event, allow_nan=False))
        separator = ",\n"
    file.write("\n]}\n")


def _events(process: Process, origin: float) -> Iterator[Event]:
    pid = process.worker + 1  # 0 is the idle process of the operating system
    yield _label(pid, 0, "process_name", name=f"worker {process.worker} ({process.host})")
    yield _label(pid, 0, "process_sort_index", sort_index=process.worker)
    if process.dropped:
        yield _label(pid, 0, "process_labels", labels=f"{process.dropped} earlier actions dropped")
    others = sorted({action.lane for action in process.actions} - {MAIN})
    kinds = [(lane, activity) for lane in (MAIN, *others) for activity in _ORDER]
    for at, kind in enumerate(kinds):
        own = [action for action in process.actions if (action.lane, action.activity) == kind]
        yield from _tracks(pid, _title(*kind), 1 + at * _ROOM, own, origin)


def _title(lane: str, activity: Activity) -> str:
    if lane == MAIN:
        return str(activity)
    return lane if activity is Activity.COMPUTE else f"{lane}, {activity}"


def _tracks(
    pid: int, title: str, first: int, actions: Sequence[Action], origin: float
) -> Iterator[Event]:
    """One activity of a worker's lane, on as many tracks as it takes."""
    # Whole microseconds: viewers cut fractions off, which makes neighbours overlap again.
    timed = ((_micros(a.start - origin), _micros(a.stop - origin), a) for a in actions)
    tracks: list[list[int]] = []  # for each track, the stops of the actions that are running
    for start, stop, action in sorted(timed, key=lambda t: (t[0], -t[1])):
        at = _fitting(tracks, start, stop, nests=action.activity is not Activity.TRANSFER)
        tid = first + at
        if at == len(tracks):
            tracks.append([])
            name = f"{title} {at + 1}" if at else title
            yield _label(pid, tid, "thread_name", name=name)
            yield _label(pid, tid, "thread_sort_index", sort_index=tid)
        tracks[at].append(stop)
        yield {
            "ph": "X",
            "name": action.name,
            "cat": str(action.activity),
            "pid": pid,
            "tid": tid,
            "ts": start,
            "dur": stop - start,
            "args": _args(action),
        }


def _fitting(tracks: list[list[int]], start: int, stop: int, *, nests: bool) -> int:
    """The first track on which nothing is running, or only what lasts at least as long."""
    for at, running in enumerate(tracks):
        while running and running[-1] <= start:
            running.pop()
        if not running or (nests and stop <= running[-1]):
            return at
    return len(tracks)


def _args(action: Action) -> Event:
    if not action.bytes:
        return {}
    seconds = action.stop - action.start
    rate = {"GB/s": round(action.bytes / seconds / 1e9, 6)} if seconds else {}
    return {"bytes": action.bytes, **rate}


def _label(pid: int, tid: int, name: str, /, **args: str | int) -> Event:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _micros(seconds: float) -> int:
    return floor(seconds * 1e6)
