"""Jobs and fleets for tests of the queue."""

from __future__ import annotations

from math import inf
from typing import Any

from longtake.scheduler.degrees import Degrees
from longtake.scheduler.queue_state import FleetDevice, JobView, Option, Priority, Run

GIB = 2**30
INTERACTIVE, BATCH = Priority


def fleet(
    *nodes: int, memory: float = 80, speed: float = 1.0, until: float = inf
) -> list[FleetDevice]:
    """Nodes of so many devices, of so many GiB."""
    return [
        FleetDevice(f"{node}{at}", node, memory * GIB, speed, until)
        for node, count in zip("abcdefghijklmnop", nodes, strict=False)
        for at in range(count)
    ]


def option(workers: int, seconds: float, memory: float = 20, across: float = 1.0) -> Option:
    return Option(Degrees(ring=workers), seconds, memory * GIB, across)


def job(name: str, *options: Option, arrived: float = 0.0, **more: Any) -> JobView:
    return JobView(name, more.pop("priority", BATCH), arrived, options, **more)


def running(
    name: str, of: Option, devices: str, ends: float, stops: float = 0.0, **more: Any
) -> JobView:
    """On devices given as `a0 a1`."""
    run = Run(of, tuple(devices.split()), 0.0, ends, stops, more.pop("lost", 0.0))
    return job(name, of, run=run, **more)
