"""The one loop that walks a schedule: for each task receive, run, send."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Protocol

from longtake.scheduler.plan import Plan
from longtake.scheduler.task import Edge, Task


class Worker(Protocol):
    """What the loop calls. A simulated and a real kind exist, or will."""

    def expect(self, edge: Edge, task: Task) -> None:
        """Make ready for what another lane will send for a task that comes soon."""
        ...

    def receive(self, edge: Edge) -> None:
        """Take in what another lane sent."""
        ...

    def run(self, task: Task) -> None:
        """Do a task, or put it in the worker's own queue."""
        ...

    def send(self, edge: Edge) -> None:
        """Hand on what another lane waits for."""
        ...


def drive(
    schedule: Iterable[Task], plan: Plan, workers: Mapping[str, Worker], ahead: int = 0
) -> None:
    """Walk the tasks in order; tasks of lanes that are not in `workers` run elsewhere.

    What comes from afar is expected `ahead` tasks before its turn, so that it travels meanwhile.
    """
    own = (
        (workers[plan.lane_of(part)], part)
        for part in plan.parts(schedule)
        if plan.lane_of(part) in workers
    )
    for worker, part in _expecting(own, plan, ahead):
        for edge in plan.incoming(part):
            worker.receive(edge)
        worker.run(part)
        for edge in plan.outgoing(part):
            worker.send(edge)


def _expecting(
    own: Iterator[tuple[Worker, Task]], plan: Plan, ahead: int
) -> Iterator[tuple[Worker, Task]]:
    waiting: deque[tuple[Worker, Task]] = deque()
    while True:
        for worker, part in islice(own, ahead + 1 - len(waiting)):
            for edge in plan.incoming(part):
                worker.expect(edge, part)
            waiting.append((worker, part))
        if not waiting:
            return
        yield waiting.popleft()
