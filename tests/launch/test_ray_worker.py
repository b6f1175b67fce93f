"""What travels between rank 0 of a Ray cluster and the driver, without a cluster."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result as CliResult

from longtake.launch.ray_worker import (
    Block,
    DriverFiles,
    Ended,
    Failed,
    Frames,
    Item,
    Outbox,
    Wanted,
)
from longtake.launch.tracing import Collected, TraceFile
from longtake.runtime.engine import Outcome
from longtake.runtime.progress import Progress
from longtake.scheduler.timeline import Action, Activity, Timeline
from longtake.scheduler.trace import Trace

LONG = 20.0  # seconds, never waited where all is well


def news(frames: int) -> Progress:
    return Progress("write", 0, 2, frames, 16, 1.0, 1.0, None)


def piece(number: int) -> Frames:
    return Frames(np.full((1, 2, 2, 3), number, np.uint8))


def test_items_stay_in_order_and_news_is_the_latest() -> None:
    outbox = Outbox(depth=8)
    outbox.tell(news(0))
    outbox.tell(news(1))
    outbox.put(Wanted(5))
    outbox.tell(news(2))
    assert outbox.take(LONG) == ([news(1), Wanted(5), news(2)], False)
    assert outbox.take(0.01) == ([], False)
    outbox.put(Wanted(6))
    outbox.close()
    assert outbox.take(LONG) == ([Wanted(6)], True)
    assert outbox.take(LONG) == ([], True)


def test_who_is_too_far_ahead_waits() -> None:
    outbox, count = Outbox(depth=2), 30
    put: list[int] = []

    def work() -> None:
        for number in range(count):
            outbox.tell(news(number))
            outbox.put(piece(number))
            put.append(number)
        outbox.close()

    thread = threading.Thread(target=work)
    thread.start()
    taken: list[Item] = []
    last = False
    while not last:
        items, last = outbox.take(LONG)
        frames = [item for item in items if isinstance(item, Frames)]
        assert len(frames) <= 2
        taken += frames
        assert len(put) <= len(taken) + 2
    thread.join()
    assert [int(item.pixels[0, 0, 0, 0]) for item in taken if isinstance(item, Frames)] == list(
        range(count)
    )


def test_kept_blocks_come_from_the_driver_and_made_ones_go_there() -> None:
    outbox = Outbox()
    files = DriverFiles(outbox, {3, 4})
    kept = torch.arange(4.0)
    assert files.read(2) is None and outbox.take(0) == ([], False)  # nobody is asked in vain

    def drive() -> None:
        for latents in (kept, None):  # the second one turned out to be damaged
            items, _ = outbox.take(LONG)
            asked.extend(items)
            files.answer(latents)

    asked: list[Item] = []
    driver = threading.Thread(target=drive)
    driver.start()
    assert files.read(3) is kept and files.read(3) is kept  # it travels once
    assert files.read(4) is None
    driver.join()
    assert asked == [Wanted(3), Wanted(4)]

    files.write(4, torch.ones(2))
    [made], _ = outbox.take(LONG)
    assert isinstance(made, Block) and made.number == 4 and torch.equal(made.latents, torch.ones(2))


def test_an_outcome_survives_the_journey() -> None:
    timeline = Timeline()
    timeline.note("decode", 1.5)
    outcome = Outcome(True, 16, 2, 1, 9, timeline)
    arrived = pickle.loads(pickle.dumps(Ended.of(outcome))).outcome()
    assert (arrived.finished, arrived.frames, arrived.blocks_made) == (True, 16, 2)
    assert (arrived.blocks_restored, arrived.evaluations) == (1, 9)
    assert arrived.timeline.summary() == timeline.summary()
    assert 0 <= arrived.timeline.elapsed <= timeline.elapsed


def test_a_trace_survives_the_journey(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is collected where rank 0 is, and written where the driver is, without who was lost."""
    traces = [Trace(rank, "host", 0.0) for rank in (0, 2)]
    for trace in traces:
        trace(Action(trace.recording(0.0).worker, Activity.COMPUTE, "task", 1.0, 2.0))
    recordings = tuple(trace.recording(3.0) for trace in traces)
    failed = Failed("worker 1 is lost", False, Collected(recordings, 0.5, (1,)))
    driver = TraceFile(tmp_path / "trace.json")
    with pytest.raises(RuntimeError, match="lost"), driver:
        driver.handed = pickle.loads(pickle.dumps(failed)).collected
        raise RuntimeError("worker 1 is lost")
    assert "the trace is without worker 1" in caplog.text
    assert driver.traced is not None and list(driver.traced.usage()) == ["0", "2"]
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [(e["pid"], e["ts"]) for e in events if e["ph"] == "X"] == [(1, 5e5), (3, 5e5)]


def test_without_ray_it_says_how_to_get_it(
    cli: Callable[..., CliResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = cli("generate", "a red circle", "--launcher", "ray")
    assert result.exit_code == 2
    told = "Ray is not installed; add it with: pip install 'longtake[ray]'"
    assert result.stderr == f"error: {told}\n"
