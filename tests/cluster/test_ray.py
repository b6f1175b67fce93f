"""Two hosts that Ray makes one cluster: one video, and a clear word when one of them is lost."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from longtake.launch.api import generate, resume

if TYPE_CHECKING:
    from hosts import Host

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROMPT = "a large red circle bouncing around slowly on a gray background"
REQUEST: dict[str, Any] = {"seconds": 4.0, "steps": 4, "settings": ["parallel.timeout=20"]}
OPTIONS = ("--seconds", "4", "--steps", "4", "--set", "parallel.timeout=20")
PORT = 6399
PATIENCE = 300.0  # seconds for what takes ten where nothing else is at work
EXIT_LOST = 3


@dataclass(frozen=True)
class Cluster:
    """Two hosts with room for one worker each; the driver runs on the first."""

    first: Host
    second: Host
    environment: Mapping[str, str]

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start longtake as a driver of this cluster."""
        there = ("--ray-address", f"{self.first.address}:{PORT}")
        return subprocess.Popen(
            self.first.command(sys.executable, "-m", "longtake", *words, *there),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def add(self, host: Host, *how: str | Path) -> None:
        """Start Ray on a host."""
        host.start_ray(*how, cpus=1, environment=self.environment)


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """The first host, with Ray; the second one is bare."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'longtake[ray]'")
    folder = tempfile.mkdtemp(prefix="ray")  # short: a socket's path is short
    hosts = sibling("hosts")
    try:
        with hosts.two_hosts() as (first, second):
            cluster = Cluster(first, second, hosts.ray_environment())
            where = ("--head", f"--port={PORT}", "--include-dashboard=false")
            cluster.add(first, *where, "--temp-dir", folder)
            yield cluster
    except hosts.NoHostsHere as error:
        pytest.skip(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """Both hosts."""
    head.add(head.second, "--address", f"{head.first.address}:{PORT}")
    yield head
    head.second.mend()
    head.second.end_processes()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the video, made in one go by two workers of one host."""
    out = tmp_path_factory.mktemp("whole") / "video.mp4"
    return generate(PROMPT, **REQUEST, out=out, workers=2).run_dir


def sibling(name: str) -> ModuleType:
    """A module beside this one."""
    file = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def latents(run_dir: Path) -> torch.Tensor:
    files = sorted((run_dir / "blocks").glob("*.safetensors"))
    return torch.cat([safetensors.torch.load_file(file)["latents"] for file in files], dim=2)


def checksums(run_dir: Path) -> dict[str, str]:
    files = sorted((run_dir / "blocks").glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def journaled(run_dir: Path) -> list[int]:
    """The block of each line of the journal."""
    journal = run_dir / "journal.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [json.loads(line)["block"] for line in lines]


def wait_for_blocks(run_dir: Path, count: int, driver: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while len(journaled(run_dir)) < count:
        if driver.poll() is not None:
            pytest.fail(f"ended with {driver.returncode}: {driver.communicate()[0]}")
        assert time.monotonic() < end, f"no {count} blocks within {PATIENCE:g} s"
        time.sleep(0.02)


def test_video_is_that_of_one_process(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "video.mp4"
    trace = tmp_path / "trace.json"
    shared = ("--workers", "2", "--set", "parallel.ring=2")
    words = (*shared, "--out", out, "--trace", trace)
    driver = cluster.start("generate", PROMPT, *OPTIONS, *words)
    said = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 0, said
    assert "64 frames, 4 s of video" in said
    assert f"{trace} opens at https://ui.perfetto.dev" in said
    events = json.loads(trace.read_text())["traceEvents"]
    named = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    hosts = (cluster.first, cluster.second)
    assert named == [f"worker {rank} ({host.name})" for rank, host in enumerate(hosts)]
    for rank in (1, 2):
        tasks = [e["name"] for e in events if e["pid"] == rank and e["ph"] == "X"]
        for last in ("denoise of block 5, step 3", "commit of block 5"):
            assert any(task.startswith(last) for task in tasks)
    alone = generate(PROMPT, **REQUEST, out=tmp_path / "alone.mp4")
    expected, made = latents(alone.run_dir), latents(tmp_path / "video.run")
    assert made.shape == expected.shape
    assert (made - expected).norm() <= 2e-5 * expected.norm()
    assert not torch.equal(made, expected)  # two workers add in another order
    assert cluster.second.processes("ray::Follower") == []  # nothing is left of them


@pytest.mark.parametrize("loss", ["worker", "link"])
def test_loss_is_told_and_one_host_goes_on(
    loss: str, cluster: Cluster, whole_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "video.run"
    out = tmp_path / "video.mp4"
    trace = tmp_path / "trace.json"
    words = ("--workers", "2", "--out", out, "--trace", trace)
    driver = cluster.start("generate", PROMPT, *OPTIONS, *words)
    wait_for_blocks(run_dir, 2, driver)
    [follower] = cluster.second.processes("ray::Follower")
    if loss == "worker":
        os.kill(follower, signal.SIGKILL)
    else:
        cluster.second.cut()
    said = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == EXIT_LOST, said
    assert f"{trace} tells what was done before the run ended" in said
    assert json.loads(trace.read_text())["traceEvents"]
    report = said.strip().splitlines()[-1]
    assert f"worker 1 (host {cluster.second.name}" in report
    assert f"process {follower})" in report
    assert "it was last at: " in report and "block" in report
    assert f"longtake resume {run_dir}" in report
    kept = checksums(run_dir)
    assert 2 <= len(kept) < len(checksums(whole_run))

    result = resume(run_dir)
    assert result.finished and result.frames == 64
    assert checksums(run_dir) == checksums(whole_run)
    assert journaled(run_dir) == sorted(journaled(run_dir))  # none was made twice
