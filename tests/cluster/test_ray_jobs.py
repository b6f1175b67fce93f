"""Jobs on two hosts that Ray makes one cluster: one of them is lost, and no job is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from longtake.launch.api import generate
from longtake.scheduler.degrees import Degrees

if TYPE_CHECKING:
    from test_ray import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROMPT = "a large red circle bouncing around slowly on a gray background"
SERVE = Path(__file__).parents[2] / "benchmarks" / "survival_scheduler.py"
PATIENCE = 300.0


def sibling(name: str) -> ModuleType:
    """A module beside this one, loaded as tests load it."""
    import importlib.util

    file = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


head = sibling("test_ray").head
cluster = sibling("test_ray").cluster


class Scheduler:
    """The central scheduler as a process of the first host, which answers lines of JSON."""

    def __init__(self, cluster: Cluster, folder: Path, port: int) -> None:
        where = ("--ray-address", f"{cluster.first.address}:{port}")
        self.log = folder / "scheduler.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                cluster.first.command(sys.executable, "-P", SERVE, folder, *where),
                env=cluster.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._answer() == "serving"

    def ask(self, told: object) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def submit(self, **asked: Any) -> str:
        told = {"prompt": [[0.0, PROMPT]], "priority": "batch", "settings": [], **asked}
        return str(self.ask(told))

    def job(self, id_: str) -> dict[str, Any]:
        return next(job for job in self.ask(None) if job["id"] == id_)

    def wait_for(self, id_: str, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while not done(job := self.job(id_)):
            assert time.monotonic() < end, f"{job}\n{self.log.read_text()[-3000:]}"
            time.sleep(0.1)
        return job

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()[-3000:]
        return json.loads(line)


@pytest.fixture
def scheduler(cluster: Cluster, tmp_path: Path) -> Iterator[Scheduler]:
    scheduler = Scheduler(cluster, tmp_path, sibling("test_ray").PORT)
    yield scheduler
    assert scheduler.process.stdin is not None
    scheduler.process.stdin.close()
    scheduler.process.wait()


def check(job: dict[str, Any], alone: Path, **asked: Any) -> None:
    """It is the video that one host makes, and no block was made twice."""
    assert job["status"] == "completed", job["error"]
    generate(PROMPT, **asked, out=alone, overwrite=True)
    folder = Path(job["folder"])
    assert (folder / "video.mp4").read_bytes() == alone.read_bytes()
    lines = (folder / "video.run" / "journal.jsonl").read_text().splitlines()
    made = Counter(told["block"] for line in lines if "block" in (told := json.loads(line)))
    assert made == dict.fromkeys(range(job["blocks"]), 1)


def test_jobs_go_on_without_a_lost_host(
    cluster: Cluster, scheduler: Scheduler, tmp_path: Path
) -> None:
    short: dict[str, Any] = {"seconds": 3.0, "steps": 8, "seed": 1}
    both: dict[str, Any] = {"seconds": 4.0, "steps": 16, "seed": 2, "workers": 2}
    settings = ["parallel.timeout=10"]
    ids = [scheduler.submit(**both, settings=settings), scheduler.submit(**short)]
    scheduler.wait_for(ids[0], lambda job: job["blocks_done"] >= 2)
    cluster.second.kill_processes()
    job = scheduler.wait_for(ids[0], lambda job: job["ended_at"] is not None)
    check(job, tmp_path / "both.mp4", **both, settings=settings)
    assert job["epoch"] >= 2 and Degrees(**job["degrees"]).world == 2
    job = scheduler.wait_for(ids[1], lambda job: job["ended_at"] is not None)
    check(job, tmp_path / "short.mp4", **short)
