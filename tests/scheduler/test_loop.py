"""The loop: receive, run, send, for the lanes that are here."""

from __future__ import annotations

from longtake.scheduler.loop import drive
from longtake.scheduler.plan import overlapped
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

    def receive(self, edge: Edge) -> None:
        self.log.append((self.name, "receive", edge.source))

    def run(self, task: Task) -> None:
        self.log.append((self.name, "run", task.tick))

    def send(self, edge: Edge) -> None:
        self.log.append((self.name, "send", edge.target))


def walk(*lanes: str) -> list[tuple[str, str, int | str]]:
    log: list[tuple[str, str, int | str]] = []
    drive(TASKS, overlapped(), {lane: Diary(lane, log) for lane in lanes})
    return log


def test_tasks_run_in_order_and_edges_around_them() -> None:
    assert walk("denoise", "decode") == [
        ("denoise", "run", 0),
        ("denoise", "run", 1),
        ("denoise", "run", 2),
        ("denoise", "send", "decode"),
        ("denoise", "run", 3),
        ("decode", "receive", "denoise"),
        ("decode", "run", 4),
    ]


def test_each_of_two_walks_does_its_own_lane() -> None:
    together = walk("denoise", "decode")
    for lane in ("denoise", "decode"):
        assert walk(lane) == [entry for entry in together if entry[0] == lane]
