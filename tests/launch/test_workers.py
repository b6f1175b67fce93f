"""Several workers of this host, who decode together too: whoever of them ends, and however, the run
is told, stops and goes on later to the same bits. All are real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import longtake
from longtake.launch.api import generate, resume
from longtake.launch.comparison import compare
from longtake.launch.crew import WorkerLost
from longtake.runtime.progress import Progress

PROMPT = "a large red circle bouncing around slowly on a gray background"
BLOCKS = 5
GENERATE = (
    *("generate", PROMPT, "--seconds", "3", "--steps", "20"),
    *("--workers", "2", "--set", "parallel.timeout=8", "--set", "parallel.vae_bands=2"),
)
PATIENCE = 120.0  # for what takes a second where nothing else runs

ReadBlocks = Callable[[Path], dict[str, str]]
ReadJournal = Callable[[Path], list[int]]


@pytest.fixture(scope="module")
def request_of_3s() -> dict[str, Any]:
    """A video of five blocks, by two workers that soon take each other for lost."""
    return {
        "prompt": PROMPT,
        "seconds": 3.0,
        "steps": 20,
        "workers": 2,
        "settings": ["parallel.timeout=8", "parallel.vae_bands=2"],
    }


@pytest.fixture(scope="module")
def shared_run(request_of_3s: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of that video, made in one go."""
    out = tmp_path_factory.mktemp("shared") / "video.mp4"
    return generate(**request_of_3s, out=out).run_dir


def test_what_workers_sent_is_what_was_predicted(shared_run: Path) -> None:
    (run,) = json.loads((shared_run / "manifest.json").read_text())["runs"]
    found = compare(run["predicted"], run)
    assert found.sent.measured == found.sent.predicted and found.sent.measured
    assert run["waited"] > 0


@pytest.fixture
def command_line(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function: start `longtake` as a process of its own, which has one thread for torch."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "longtake", *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def workers_of(pid: int) -> list[int]:
    """The processes that a process has started and not yet buried, without helpers of Python."""
    told = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    found = [int(child) for children in told for child in children]
    return [child for child in found if b"longtake.launch.worker" in words_of(child)]


def words_of(pid: int) -> bytes:
    """A process's command line; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_for(done: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def kept(run_dir: Path) -> int:
    return len([*run_dir.glob("blocks/*.safetensors")])


def wait_for_blocks(process: subprocess.Popen[str], run_dir: Path, count: int) -> None:
    wait_for(lambda: process.poll() is not None or kept(run_dir) >= count)
    assert process.poll() is None, process.communicate()


def after_blocks(run_dir: Path, count: int, act: Callable[[int], None]) -> Future[int]:
    """Once so many are kept, do something to the worker of this process, and tell its number."""

    def wait() -> int:
        wait_for(lambda: kept(run_dir) >= count)
        (worker,) = workers_of(os.getpid())
        act(worker)
        return worker

    pool = ThreadPoolExecutor(1)
    found = pool.submit(wait)
    pool.shutdown(wait=False)
    return found


def at_block(block: int, act: Callable[[int], None]) -> Callable[[Progress], None]:
    """An `on_progress` that does something to worker 1, once, when a block is at work."""
    done: list[int] = []

    def on_progress(progress: Progress) -> None:
        if progress.block == block and not done:
            done.extend(workers_of(os.getpid()))
            (worker,) = done
            act(worker)

    return on_progress


@pytest.mark.slow
def test_lost_worker_is_reported_and_the_run_goes_on(
    cli: Callable[..., Result],
    shared_run: Path,
    read_blocks: ReadBlocks,
    read_journal: ReadJournal,
) -> None:
    """One is killed, then its successor hangs, and the third time all goes well."""
    run_dir = Path("video.run")
    kill = after_blocks(run_dir, 1, lambda worker: os.kill(worker, signal.SIGKILL))
    result = cli(*GENERATE)
    worker = kill.result()
    assert result.exit_code == 3 and result.stdout == "" and "Traceback" not in result.stderr
    assert re.fullmatch(
        rf"error: worker 1 \(host {os.uname().nodename}, process {worker}\) fell silent; it was "
        rf"last at: .+; process {worker} of worker 1 was killed by signal 9, see "
        r"video\.run/workers/worker-1\.log; noticed at .*; \d of 5 blocks are kept; go on with: "
        r"longtake resume video\.run",
        result.stderr.splitlines()[-1],
    )
    first = read_journal(run_dir)
    assert first == list(range(len(first))) and 1 <= len(first) < BLOCKS

    stopped = at_block(3, lambda worker: os.kill(worker, signal.SIGSTOP))
    with pytest.raises(longtake.WorkerLost) as caught:
        resume(run_dir, on_progress=stopped)
    assert re.fullmatch(
        r"worker 1 \(host \S+, process \d+\) fell silent; it was last at: .+; "
        r"noticed at .*",
        str(caught.value),
    )
    assert workers_of(os.getpid()) == []  # it was killed, though it could not end by itself
    second = read_journal(run_dir)
    assert second == list(range(len(second))) and len(first) < len(second) < BLOCKS

    result = resume(run_dir)
    assert result.finished and workers_of(os.getpid()) == []
    assert read_blocks(run_dir) == read_blocks(shared_run)
    assert read_journal(run_dir) == list(range(BLOCKS))
    assert result.path.read_bytes() == shared_run.with_suffix(".mp4").read_bytes()


@pytest.mark.slow
def test_workers_end_with_whatever_ends_the_first(
    request_of_3s: dict[str, Any], tmp_path: Path
) -> None:
    def trouble(worker: int) -> None:
        raise LookupError(worker)

    with pytest.raises(LookupError) as caught:
        generate(**request_of_3s, out=tmp_path / "video.mp4", on_progress=at_block(1, trouble))
    assert words_of(*caught.value.args) == b""


def test_worker_that_does_not_start_is_reported(
    request_of_3s: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerLost) as caught:
        generate(**request_of_3s, out=tmp_path / "video.mp4")
    told = r"worker 1 never gave a sign of life; process \d+ of worker 1 ended with code 1, see .*"
    assert re.fullmatch(told, str(caught.value))


@pytest.mark.slow
def test_workers_end_by_themselves_when_the_first_is_killed(
    command_line: Callable[..., subprocess.Popen[str]],
    shared_run: Path,
    tmp_path: Path,
    read_blocks: ReadBlocks,
) -> None:
    run_dir = tmp_path / "video.run"
    process = command_line(*GENERATE)
    wait_for_blocks(process, run_dir, 2)
    (worker,) = workers_of(process.pid)
    process.kill()
    wait_for(lambda: words_of(worker) == b"")
    told = (run_dir / "workers" / "worker-1.log").read_text()
    assert "error: worker 1" in told and "Traceback" not in told
    assert resume(run_dir).finished
    assert read_blocks(run_dir) == read_blocks(shared_run)


@pytest.mark.slow
def test_interrupts_end_all_workers(
    cli: Callable[..., Result],
    command_line: Callable[..., subprocess.Popen[str]],
    shared_run: Path,
    read_blocks: ReadBlocks,
    read_journal: ReadJournal,
) -> None:
    """The first ends the run after the block at work, two end it at once, though a worker hangs;
    both can go on."""
    run_dir = Path("video.run").resolve()
    signalled = after_blocks(run_dir, 1, lambda worker: os.kill(os.getpid(), signal.SIGINT))
    result = cli(*GENERATE)
    worker = signalled.result()
    assert result.exit_code == 130
    made = len(read_journal(run_dir))
    last = f"stopped: {made} of 5 blocks are kept; go on with: longtake resume video.run"
    assert 1 <= made < BLOCKS and result.stderr.splitlines()[-1] == last
    assert words_of(worker) == b""
    assert (run_dir / "workers" / "worker-1.log").read_text() == ""

    process = command_line("resume", str(run_dir))
    wait_for_blocks(process, run_dir, made + 1)
    (worker,) = workers_of(process.pid)
    os.kill(worker, signal.SIGSTOP)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert process.returncode == 130
    last = r"stopped: \d of 5 blocks are kept; go on with: longtake resume \S+/video\.run"
    errors = process.communicate()[1]
    assert re.fullmatch(last, errors.splitlines()[-1]) and "Traceback" not in errors
    assert (run_dir / "manifest.json").exists() and not run_dir.with_suffix(".mp4").exists()
    wait_for(lambda: words_of(worker) == b"")

    assert resume(run_dir).finished
    assert read_blocks(run_dir) == read_blocks(shared_run)
    assert read_journal(run_dir) == list(range(BLOCKS))
