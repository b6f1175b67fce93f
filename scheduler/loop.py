"""The one loop that walks a schedule: for each task receive, run, send."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Protocol

from longtake.scheduler.plan import DECODE, Plan
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
    All workers of a stage look equally far ahead, past decodes that only some of them do as well:
    one that looked further would ask what becomes of the next block, which rank 0 does not say
    before the two have done together what comes before it.
    """
    own = (
        (workers.get(plan.lane_of(part)), part)
        for part in plan.parts(schedule)
        if plan.lane_of(part) in (*workers, DECODE)
    )
    for worker, part in _expecting(own, plan, ahead):
        if worker is None:
            continue
        for edge in plan.incoming(part):
            worker.receive(edge)
        worker.run(part)
        for edge in plan.outgoing(part):
            worker.send(edge)


def _expecting(
    own: Iterator[tuple[Worker | None, Task]], plan: Plan, ahead: int
) -> Iterator[tuple[Worker | None, Task]]:
    waiting: deque[tuple[Worker | None, Task]] = deque()
    while True:
        for worker, part in islice(own, ahead + 1 - len(waiting)):
            if worker is not None:
                for edge in plan.incoming(part):
                    worker.expect(edge, part)
            waiting.append((worker, part))
        if not waiting:
            return
        yield waiting.popleft()
