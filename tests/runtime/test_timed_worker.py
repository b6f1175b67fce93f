"""Tasks are timed where they run, and nothing else about them changes."""

from __future__ import annotations

from itertools import pairwise
from time import monotonic

import pytest
import torch

from longtake.runtime.timed_worker import TimedWorker
from longtake.scheduler.task import Edge, Kind, Payload, Span, Task
from longtake.scheduler.timeline import Action

CPU = torch.device("cpu")
EDGE = Edge(Payload.HIDDEN, 3, "stage 0", "stage 1")


def task(step: int, stage: int = 0, branch: int | None = None) -> Task:
    return Task(step, Kind.DENOISE, 3, Span(9, 12), 0, step, stage=stage, branch=branch)


class Worker:
    """Writes down what it is told; fails at one step. On a GPU it gives it something to do."""

    def __init__(self, device: torch.device = CPU, fail_at: int | None = None) -> None:
        self.told: list[tuple[object, ...]] = []
        self._device, self._fail_at = device, fail_at

    def expect(self, edge: Edge, task: Task) -> None:
        self.told.append(("expect", edge, task))

    def receive(self, edge: Edge) -> None:
        self.told.append(("receive", edge))

    def run(self, task: Task) -> None:
        self.told.append(("run", task))
        if task.step == self._fail_at:
            raise ValueError("the step failed")
        if self._device.type == "cuda":
            torch.cuda._sleep(20_000_000)  # cycles: some 10 ms

    def send(self, edge: Edge) -> None:
        self.told.append(("send", edge))


def test_all_is_passed_on_and_tasks_are_timed() -> None:
    worker, actions = Worker(), list[Action]()
    before = monotonic()
    with TimedWorker(worker, actions.append, 2, False, CPU) as timed:
        timed.expect(EDGE, task(0))
        timed.receive(EDGE)
        timed.run(task(0))
        timed.run(task(1))
        timed.send(EDGE)
    after = monotonic()
    assert worker.told == [
        ("expect", EDGE, task(0)),
        ("receive", EDGE),
        ("run", task(0)),
        ("run", task(1)),
        ("send", EDGE),
    ]
    assert [a.name for a in actions] == ["denoise of block 3, step 0", "denoise of block 3, step 1"]
    assert {(a.worker, a.activity, a.bytes) for a in actions} == {(2, "compute", 0)}
    first, second = actions
    assert before <= first.start <= first.stop <= second.start <= second.stop <= after


def test_a_stage_tells_its_number_and_branch() -> None:
    actions: list[Action] = []
    with TimedWorker(Worker(), actions.append, 0, True, CPU) as timed:
        timed.run(task(0, stage=0))
        timed.run(task(0, stage=1, branch=0))
    assert [a.name.removeprefix("denoise of block 3, step 0, ") for a in actions] == [
        "stage 0",
        "stage 1, branch 0",
    ]


def test_a_task_that_fails_is_recorded_and_fails_as_itself() -> None:
    actions: list[Action] = []
    with (
        pytest.raises(ValueError, match="the step failed"),
        TimedWorker(Worker(fail_at=1), actions.append, 0, False, CPU) as timed,
    ):
        timed.run(task(0))
        timed.run(task(1))
    assert [a.name for a in actions] == ["denoise of block 3, step 0", "denoise of block 3, step 1"]


@pytest.mark.gpu
def test_on_a_gpu_the_work_is_timed_not_its_launch() -> None:
    actions: list[Action] = []
    device = torch.device("cuda", 0)
    torch.zeros(1, device=device)
    before = monotonic()
    with TimedWorker(Worker(device), actions.append, 0, False, device) as timed:
        for step in range(5):
            timed.run(task(step))
        launched = monotonic()
    after = monotonic()
    assert [a.name for a in actions] == [f"denoise of block 3, step {step}" for step in range(5)]
    assert all(a.stop <= b.start + 1e-3 for a, b in pairwise(actions))
    assert before - 1e-3 <= actions[0].start and actions[-1].stop <= after + 1e-3
    assert actions[-1].stop > launched, "the host was ahead of the GPU"
    total = sum(a.stop - a.start for a in actions)
    assert total > launched - before
