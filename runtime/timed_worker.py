"""When a worker of the loop ran its tasks, in the time of the device that ran them."""

from __future__ import annotations

from collections import deque
from time import monotonic
from types import TracebackType
from typing import Self

import torch
from torch.cuda import Event

from longtake.scheduler.loop import Worker
from longtake.scheduler.task import Edge, Task
from longtake.scheduler.timeline import Action, Activity, Record

_REBASE = 60.0  # seconds after which the clocks are compared anew: events count in float32


class TimedWorker:
    """Passes everything on to another worker, and records a COMPUTE action for each of its tasks.

    On a GPU the host runs ahead, so a task is timed by events of the computing stream; its action
    is recorded once the GPU is through with it, at the latest when the context is left.

    Args:
        worker: who does the tasks.
        record: hears of them.
        rank: of the worker.
        staged: whether the stage of layers is part of a task's name.
        device: where the worker computes.
    """

    def __init__(
        self, worker: Worker, record: Record, rank: int, staged: bool, device: torch.device
    ) -> None:
        self._worker, self._record, self._rank, self._staged = worker, record, rank, staged
        self._gpu = _GpuTimes(device) if device.type == "cuda" else None

    def expect(self, edge: Edge, task: Task) -> None:
        """See `Worker`."""
        self._worker.expect(edge, task)

    def receive(self, edge: Edge) -> None:
        """See `Worker`."""
        self._worker.receive(edge)

    def send(self, edge: Edge) -> None:
        """See `Worker`."""
        self._worker.send(edge)

    def run(self, task: Task) -> None:
        """See `Worker`. A task that fails is recorded too, but not on a GPU, which may be gone."""
        if self._gpu is None:
            start = monotonic()
            try:
                self._worker.run(task)
            finally:
                self._note(self._name(task), start, monotonic())
        else:
            begin = self._gpu.mark()
            self._worker.run(task)
            self._gpu.add(self._name(task), begin)
            self._note_all(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._note_all(wait=True)

    def _note_all(self, *, wait: bool) -> None:
        if self._gpu is not None:
            for name, start, stop in self._gpu.finished(wait=wait):
                self._note(name, start, stop)

    def _name(self, task: Task) -> str:
        """Such as `denoise of block 3, step 2, stage 1, branch 0`."""
        stage = f", stage {task.stage}" if self._staged else ""
        branch = "" if task.branch is None else f", branch {task.branch}"
        return f"{task.describe()}{stage}{branch}"

    def _note(self, name: str, start: float, stop: float) -> None:
        self._record(Action(self._rank, Activity.COMPUTE, name, start, stop))


class _GpuTimes:
    """Pairs of events on the computing stream, in seconds of `time.monotonic`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: deque[tuple[str, Event, Event]] = deque()
        origin = self.mark()
        origin.synchronize()
        self._origin = (origin, monotonic())

    def mark(self) -> Event:
        event = Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def add(self, name: str, begin: Event) -> None:
        self._open.append((name, begin, self.mark()))

    def finished(self, *, wait: bool) -> list[tuple[str, float, float]]:
        """Name, start and stop of those that are over; `wait`: of all."""
        times = []
        while self._open and (wait or self._open[0][2].query()):
            name, begin, end = self._open.popleft()
            end.synchronize()
            origin, seconds = self._origin
            start, stop = (seconds + origin.elapsed_time(e) / 1000 for e in (begin, end))
            times.append((name, start, stop))
            if stop - seconds > _REBASE:
                self._origin = (end, stop)
        return times
