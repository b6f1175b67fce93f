"""The loop: receive, run, send, for the lanes that are here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from longtake.scheduler.degrees import Degrees
from longtake.scheduler.loop import drive
from longtake.scheduler.plan import Plan
from longtake.scheduler.task import Edge, Kind, Span, Task

TASKS = [
    Task(0, Kind.ENCODE, 0, Span(0, 3), 0),
    Task(1, Kind.DENOISE, 0, Span(0, 3), 0),
    Task(2, Kind.DENOISE, 0, Span(0, 3), 0, step=1, last=True),
    Task(3, Kind.COMMIT, 0, Span(0, 3), 0),
    Task(4, Kind.DECODE, 0, Span(0, 3), 0),
]


class Diary:
    """A worker that writes down what it was told."""

    def __init__(self, name: str, log: list[tuple[str, str, int | str]]) -> None:
        self.name, self.log = name, log

    def expect(self, edge: Edge, task: Task) -> None:
        self.log.append((self.name, "expect", task.tick))

    def receive(self, edge: Edge) -> None:
        self.log.append((self.name, "receive", edge.source))

    def run(self, task: Task) -> None:
        self.log.append((self.name, "run", task.tick))

    def send(self, edge: Edge) -> None:
        self.log.append((self.name, "send", edge.target))


def walk(*lanes: str) -> list[tuple[str, str, int | str]]:
    log: list[tuple[str, str, int | str]] = []
    drive(TASKS, Plan(), {lane: Diary(lane, log) for lane in lanes})
    return log


def test_tasks_run_in_order_and_edges_around_them() -> None:
    assert walk("denoise", "decode") == [
        ("denoise", "run", 0),
        ("denoise", "run", 1),
        ("denoise", "run", 2),
        ("denoise", "send", "decode"),
        ("denoise", "run", 3),
        ("decode", "expect", 4),
        ("decode", "receive", "denoise"),
        ("decode", "run", 4),
    ]


def test_each_of_two_walks_does_its_own_lane() -> None:
    together = walk("denoise", "decode")
    for lane in ("denoise", "decode"):
        assert walk(lane) == [entry for entry in together if entry[0] == lane]


def test_what_comes_from_afar_is_expected_ahead_of_its_turn() -> None:
    log: list[tuple[str, str, int | str]] = []
    plan = Plan(Degrees(stages=2))
    drive(TASKS, plan, {"stage 1": Diary("stage 1", log)}, ahead=1)
    told = [(what, at) for _, what, at in log if what in ("expect", "run")]
    assert told == [
        ("expect", 1),
        ("run", 0),
        ("expect", 2),
        ("run", 1),
        ("expect", 3),
        ("run", 2),
        ("run", 3),
    ]


@pytest.mark.parametrize("lanes", [("stage 0",), ("stage 0", "decode")])
def test_who_decodes_looks_no_less_far_ahead(lanes: Sequence[str]) -> None:
    """Else one of two that share a stage waits for a verdict, and the other one for it."""
    log: list[tuple[str, str, int | str]] = []

    def asked() -> Iterator[Task]:
        yield from TASKS
        log.append(("rank 0", "is asked for a verdict", 1))
        yield Task(5, Kind.DENOISE, 1, Span(3, 6), 0)

    drive(asked(), Plan(Degrees(stages=2)), {lane: Diary(lane, log) for lane in lanes}, ahead=1)
    before = log[: log.index(("rank 0", "is asked for a verdict", 1))]
    assert ("stage 0", "run", 3) in before
