"""Jobs on real processes of this host: whatever happens to them, the videos are those of a run that
nothing happened to, and no block that was finished is made again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from longtake.launch.api import generate
from longtake.launch.central import Central
from longtake.launch.job_store import JobStore
from longtake.launch.jobs import Ask, Job, Status
from longtake.launch.local_fleet import LocalFleet
from longtake.launch.rules import Rules

pytestmark = pytest.mark.slow

PROMPT = "a large red circle bouncing around slowly on a gray background"
OTHER = "a small blue square standing still on a pink background"
RULES = Rules(backoff=0.1)
PATIENCE = 120.0
BLOCKS = 6  # of four seconds


def ask(seed: int, steps: int = 2) -> Ask:
    return Ask(((0.0, PROMPT), (2.0, OTHER)), seconds=4.0, steps=steps, seed=seed)


def whole(folder: Path, asked: Ask) -> Path:
    """The same video, made in one go."""
    out = folder / f"{asked.seed}.mp4"
    facts = {"seconds": asked.seconds, "steps": asked.steps, "seed": asked.seed}
    return generate(asked.prompt, **facts, out=out).path


def blocks_made(job: Job) -> list[int]:
    """The block of each line of the journal; marks of epochs have none."""
    lines = (Path(job.run_dir) / "journal.jsonl").read_text().splitlines()
    return [told["block"] for line in lines if "block" in (told := json.loads(line))]


def check(job: Job, expected: Path) -> None:
    assert job.status is Status.COMPLETED, job.error
    assert Path(job.video).read_bytes() == expected.read_bytes()
    assert blocks_made(job) == list(range(BLOCKS))


def test_videos_are_those_of_generate_though_a_runner_is_killed(tmp_path: Path) -> None:
    fleet = LocalFleet(tmp_path / "fleet", "cpu", 1)
    store = JobStore(tmp_path / "jobs.sqlite")
    with Central(store, fleet, tmp_path / "videos", rules=RULES) as central:

        def wait(id_: str, done: Callable[[Job], bool]) -> Job:
            end = time.monotonic() + PATIENCE
            while not done(central.get(id_)):
                assert time.monotonic() < end, central.events(id_)
                time.sleep(0.02)
            return central.get(id_)

        quick, slow = ask(1), ask(2, steps=16)
        first, second = central.submit(quick).id, central.submit(slow).id
        job = wait(first, lambda job: job.status.ended)
        kinds = [event.kind for event in central.events(first)]
        assert kinds[:2] == ["created", "started"] and kinds[-1] == "completed"
        assert (job.frames, job.progress, job.epoch) == (64, 1.0, 1)

        wait(second, lambda job: job.blocks_done >= 2)
        [group] = fleet.groups
        wait(second, lambda job: central.cluster().devices[0].warm == "tinyworld")
        os.kill(group.pid, signal.SIGKILL)
        job = wait(second, lambda job: job.status.ended)
        check(job, whole(tmp_path, slow))
        check(central.get(first), whole(tmp_path, quick))
        assert (job.epoch, job.faults, job.strikes) == (2, 1, 0)
        assert central.figures().faults == {"lost": 1}


def test_two_workers_tell_what_they_send_and_keep(tmp_path: Path) -> None:
    fleet = LocalFleet(tmp_path / "fleet", "cpu", 2)
    store = JobStore(tmp_path / "jobs.sqlite")
    with Central(store, fleet, tmp_path / "videos", rules=RULES) as central:
        settings = ("parallel.ring=2", "strategy.window=9")
        asked = replace(ask(3), seconds=60.0, workers=2, settings=settings)
        job = central.submit(asked)
        end = time.monotonic() + PATIENCE
        while not {"cpu0", "cpu1"} <= {n for n, c in central.figures().cache.items() if c.used}:
            assert time.monotonic() < end, central.events(job.id)
            time.sleep(0.05)
        for occupancy in central.figures().cache.values():
            assert 0 < occupancy.used <= occupancy.room
        central.cancel(job.id)
        while not central.get(job.id).status.ended:
            assert time.monotonic() < end, central.events(job.id)
            time.sleep(0.05)
        figures = central.figures()
    manifest = json.loads((Path(job.run_dir) / "manifest.json").read_text())
    run = manifest["runs"][-1]
    assert set(figures.sent) == {("cpu0", "cpu1"), ("cpu1", "cpu0")}
    assert sum(figures.sent.values()) == sum(run["sent"].values()) > 0
    assert figures.waited["cpu0"] == pytest.approx(run["waited"], abs=0.01)
    assert figures.waited["cpu1"] > 0 and figures.cache == {}


def test_a_killed_scheduler_loses_nothing() -> None:
    """The benchmark, in short: another process asks, and the scheduler is killed on the way."""
    script = Path(__file__).parents[2] / "benchmarks" / "survival.py"
    words = ("--seed", "5", "--requests", "2", "--devices", "1", "--pause", "0.2", "0.6")
    done = subprocess.run(
        [sys.executable, script, *words, "--kinds", "scheduler", "--faults", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 videos are whole and the same after 1 faults (1 scheduler)" in done.stdout
