"""Jobs on real processes of this host: whatever happens to them, the videos are those of a run that
nothing happened to, and no block that was finished is made again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longtake.launch.api import generate
from longtake.launch.central import Central
from longtake.launch.job_store import JobStore
from longtake.launch.jobs import Ask, Job, Status
from longtake.launch.local_fleet import LocalFleet
from longtake.launch.rules import Rules

PROMPT = "a large red circle bouncing around slowly on a gray background"
OTHER = "a small blue square standing still on a pink background"
RULES = Rules(silence=4.0, hang=20.0, crew=6.0, backoff=0.1)
PATIENCE = 120.0
BLOCKS = 6  # of four seconds


def ask(seed: int, steps: int = 2, **facts: object) -> Ask:
    return Ask(((0.0, PROMPT), (2.0, OTHER)), seconds=4.0, steps=steps, seed=seed, **facts)  # type: ignore[arg-type]


def whole(folder: Path, asked: Ask) -> Path:
    """The same video, made in one go."""
    out = folder / f"{asked.seed}-{asked.steps}-{asked.workers}.mp4"
    if not out.exists():
        generate(
            asked.prompt,
            seconds=asked.seconds,
            steps=asked.steps,
            seed=asked.seed,
            workers=asked.workers,
            settings=asked.settings,
            out=out,
        )
    return out


def wait_for(done: Callable[[], object], why: Callable[[], object] = lambda: "") -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, why()
        time.sleep(0.02)


def blocks_made(job: Job) -> list[int]:
    """The block of each line of the journal; marks of epochs have none."""
    lines = (Path(job.run_dir) / "journal.jsonl").read_text().splitlines()
    return [told["block"] for line in lines if "block" in (told := json.loads(line))]


def check(job: Job, expected: Path) -> None:
    assert job.status is Status.COMPLETED, job.error
    assert Path(job.video).read_bytes() == expected.read_bytes()
    assert blocks_made(job) == list(range(BLOCKS))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone")


class Cluster:
    """A central scheduler on two devices, which can be killed like a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.central = self.start()

    def start(self) -> Central:
        self.fleet = LocalFleet(self.folder / "fleet", "cpu", 2, lease=4.0)
        store = JobStore(self.folder / "jobs.sqlite")
        central = Central(store, self.fleet, self.folder / "videos", rules=RULES)
        central.start()
        return central

    def wait(self, id_: str, blocks: int) -> Job:
        """Until so many blocks are finished."""
        central = self.central
        wait_for(lambda: central.get(id_).blocks_done >= blocks, lambda: central.get(id_))
        return central.get(id_)

    def ended(self, id_: str) -> Job:
        central = self.central
        wait_for(lambda: central.get(id_).status.ended, lambda: central.events(id_))
        return central.get(id_)

    def runner_of(self, id_: str) -> int:
        [group] = [g for g in self.fleet.groups if g.devices == self.central.get(id_).devices]
        return group.pid


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.central.close()


def test_videos_are_those_of_generate(cluster: Cluster, alone: Path) -> None:
    asked = [ask(seed) for seed in (1, 2, 3)]
    ids = [cluster.central.submit(each).id for each in asked]
    for id_, each in zip(ids, asked, strict=True):
        job = cluster.ended(id_)
        check(job, whole(alone, each))
        kinds = [event.kind for event in cluster.central.events(id_)]
        assert kinds[:2] == ["created", "started"] and kinds[-1] == "completed"
        assert (job.frames, job.progress, job.epoch) == (64, 1.0, 1)
    warm = [device.warm for device in cluster.central.cluster().devices]
    assert warm == ["tinyworld", "tinyworld"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_runner_costs_the_block_in_flight(
    number: signal.Signals, cluster: Cluster, alone: Path
) -> None:
    asked = ask(2, steps=40)
    id_ = cluster.central.submit(asked).id
    cluster.wait(id_, 2)
    os.kill(cluster.runner_of(id_), number)
    job = cluster.ended(id_)
    check(job, whole(alone, asked))
    assert (job.epoch, job.faults, job.strikes) == (2, 1, 0)
    [fault] = [event for event in cluster.central.events(id_) if event.kind == "fault"]
    assert fault.facts["kind"] == ("lost" if number == signal.SIGKILL else "silent")
