"""The one loop that walks a schedule: for each task receive, run, send."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from longtake.scheduler.plan import Plan
from longtake.scheduler.task import Edge, Task


class Worker(Protocol):
    """What the loop calls. A simulated and a real kind exist, or will."""

    def receive(self, edge: Edge) -> None:
        """Take in what another lane sent."""
        ...

    def run(self, task: Task) -> None:
        """Do a task, or put it in the worker's own queue."""
        ...

    def send(self, edge: Edge) -> None:
        """Hand on what another lane waits for."""
        ...


def drive(schedule: Iterable[Task], plan: Plan, workers: Mapping[str, Worker]) -> None:
    """Walk the tasks in order; tasks of lanes that are not in `workers` run elsewhere."""
    for task in schedule:
        worker = workers.get(plan.lane_of(task.kind))
        if worker is None:
            continue
        for edge in plan.incoming(task):
            worker.receive(edge)
        worker.run(task)
        for edge in plan.outgoing(task):
            worker.send(edge)
