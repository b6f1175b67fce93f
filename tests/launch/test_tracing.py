"""A run's trace tells what every worker really did, on one clock, whatever became of the run."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.launch.ask import read_settings
from longtake.launch.crew import WorkerLost
from longtake.launch.draft import make_draft
from longtake.launch.places import read_places
from longtake.launch.run import Run
from longtake.launch.tracing import TraceFile, Tracing, put, take
from longtake.parallel.mesh import Rendezvous, alone, open_mesh
from longtake.parallel.store import LocalStore
from longtake.runtime.progress import Progress
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue
from longtake.scheduler.timeline import Action, Activity, forget
from longtake.scheduler.trace import Trace

PROMPT = "a large red circle bouncing around slowly on a gray background"
EVALUATIONS = re.compile(r"denoise of block|commit of block")
CPU = torch.device("cpu")

Event = dict[str, Any]


class File:
    """A trace as a viewer sees it."""

    def __init__(self, path: Path) -> None:
        events: list[Event] = json.loads(path.read_text("utf-8"))["traceEvents"]
        titles = [event for event in events if event["name"] == "process_name"]
        self.workers = [event["args"]["name"].split(" (")[0] for event in titles]
        tracks = [event for event in events if event["name"] == "thread_name"]
        self._tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in tracks}
        self.slices = [event for event in events if event["ph"] == "X"]

    def of(self, worker: int, track: str) -> list[Event]:
        """The actions on a worker's track, and on what continues it."""
        shown = [e for e in self.slices if e["pid"] == worker + 1]
        return [
            e for e in shown if re.fullmatch(rf"{track}( \d+)?", self._tracks[e["pid"], e["tid"]])
        ]

    def tracks(self, worker: int) -> set[str]:
        """Those of a worker, each kind once."""
        names = [name for (pid, _), name in self._tracks.items() if pid == worker + 1]
        return {re.sub(r" \d+$", "", name) for name in names}


def add_up(usage: dict[str, Any]) -> None:
    """The states of a worker fill its time, and none is negative."""
    parts = [usage["compute"], usage["exposed"], usage["idle"]]
    assert min(*parts, usage["hidden"]) >= 0
    assert sum(parts) == pytest.approx(usage["wall"], abs=1e-5)
    assert usage["hidden"] + usage["exposed"] <= usage["wall"] + 1e-5


@pytest.mark.parametrize("axis", ["ring", "ulysses", "stages"])
def test_two_workers_are_traced(axis: str, ranks: Callable[..., Any], tiny_folder: Path) -> None:
    split = [f"--set=parallel.{name}={2 if name == axis else 1}" for name in ("ring", "ulysses")]
    words: list[str | int] = ["--seconds", 1, "--steps", 2]
    words += ["--set", f"parallel.vae_bands={2 if axis == 'ring' else 1}"]
    if axis == "ulysses":  # tinyworld has 5 heads, this one 2
        words += ["--set", f"model.folder={tiny_folder}", "--size", "32x32"]
    start = time.monotonic()
    (code, _, told), other = ranks("generate", PROMPT, *words, *split, "--trace", "trace.json")
    lasted = (time.monotonic() - start) * 1e6
    assert code == 0 and other == (0, "", ""), told

    file = File(Path("trace.json"))
    assert file.workers == ["worker 0", "worker 1"]
    assert file.tracks(0) - {"decode, wait", "decode, transfer"} == {
        *("compute", "wait", "transfer", "decode", "write")
    }
    beside = {"decode", "decode, wait", "decode, transfer"} if axis == "ring" else set()
    assert file.tracks(1) == {"compute", "wait", "transfer"} | beside
    assert all(e["ts"] >= 0 and e["ts"] + e["dur"] <= lasted for e in file.slices)
    for worker in (0, 1):
        tasks = [e["name"] for e in file.of(worker, "compute") if EVALUATIONS.match(e["name"])]
        staged = f", stage {worker}" if axis == "stages" else ""
        assert tasks == [
            f"{kind} of block {block}{step}{staged}"
            for block in (0, 1)
            for kind, step in (("denoise", ", step 0"), ("denoise", ", step 1"), ("commit", ""))
        ]
        transfers = {e["name"] for e in file.of(worker, "transfer")}
        assert any(axis.removesuffix("s") in name for name in transfers), transfers
    for worker in (0, 1) if axis == "ring" else (0,):
        assert [e["name"] for e in file.of(worker, "decode")] == [
            "decode of block 0",
            "decode of block 1",
        ]

    (run,) = json.loads(Path("video.run/manifest.json").read_text())["runs"]
    assert list(run["usage"]) == ["0", "1"]
    for usage in run["usage"].values():
        add_up(usage)
        assert usage["compute"] > 0 and usage["exposed"] > 0
        assert usage["wall"] * 1e6 <= lasted
    for worker, usage in run["usage"].items():
        row = rf"^{worker} +{usage['wall']:.2f} s +{usage['compute']:.2f} s "
        assert re.search(row, told, re.MULTILINE), told
    assert "trace.json opens at https://ui.perfetto.dev" in told


def test_one_worker_is_traced(cli: Callable[..., Any]) -> None:
    words = ["--seconds", 1, "--steps", 1, "--trace", "trace.json", "--json"]
    result = cli("generate", PROMPT, *words)
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stdout.splitlines()]
    (event,) = [event for event in told if event["event"] == "trace"]
    assert event["path"] == "trace.json"
    assert list(event["workers"]) == ["0"]
    usage = event["workers"]["0"]
    add_up(usage)
    assert usage["compute"] > 0
    assert usage["exposed"] == usage["hidden"] == 0
    file = File(Path("trace.json"))
    assert file.workers == ["worker 0"]
    assert file.tracks(0) == {"compute", "decode", "write"}
    assert len(file.of(0, "compute")) == 1 + 2 * 2
    again = cli("generate", PROMPT, *words, "--out", "other.mp4")
    assert again.exit_code == 2
    assert "trace.json is there already" in again.stderr
    assert not Path("other.run").exists()


def test_a_run_without_a_trace_tells_nothing_of_it(cli: Callable[..., Any]) -> None:
    result = cli("generate", PROMPT, "--seconds", 0.5, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "perfetto" not in result.output
    assert "usage" not in json.loads(Path("video.run/manifest.json").read_text())["runs"][0]
    assert Tracing(False).record is forget


@pytest.mark.parametrize(
    ("path", "trouble"),
    [("nowhere/trace.json", "nowhere is no folder"), (".", "it is a folder")],
)
def test_a_trace_that_cannot_be_written_is_known_at_once(
    path: str, trouble: str, cli: Callable[..., Any]
) -> None:
    result = cli("generate", PROMPT, "--seconds", 1, "--trace", path)
    assert result.exit_code == 2
    assert trouble in result.stderr
    assert list(Path().iterdir()) == []


def make_run(folder: Path, workers: int) -> Run:
    settings = read_settings(
        model="tinyworld",
        strategy=None,
        steps=1,
        size=None,
        settings=[f"parallel.ring={workers}"],
        workers=workers,
        seconds=8.0,
    )
    draft = make_draft(settings, [Cue(0, PROMPT)], 8.0)
    return Run.new(
        draft, read_places(folder / "v.mp4", None, None, False), None, folder / "trace.json"
    )


def test_a_run_that_is_stopped_is_traced_up_to_there(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    result = run.execute(lambda progress: run.stop())
    assert not result.finished
    add_up(result.manifest["runs"][-1]["usage"]["0"])
    names = {e["name"] for e in File(tmp_path / "trace.json").of(0, "compute")}
    last = (run.blocks[1] or 0) - 1
    assert "commit of block 0" in names and f"commit of block {last}" not in names


def test_a_run_that_fails_leaves_the_trace_of_all_workers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error = UserError("the pipe is closed")

    def fail(progress: Progress) -> None:
        if progress.block == 1:
            raise error

    with pytest.raises(UserError) as caught:
        make_run(tmp_path, 2).execute(fail)
    assert caught.value is error
    file = File(tmp_path / "trace.json")
    assert file.workers == ["worker 0", "worker 1"]
    for worker in (0, 1):
        assert any(e["name"] == "commit of block 0" for e in file.of(worker, "compute"))
    assert "tells what was done before the run ended" in caplog.text


def test_a_lost_worker_is_missing_from_the_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    me = os.getpid()
    children = Path(f"/proc/{me}/task/{me}/children")
    if not children.exists():
        pytest.skip("needs a system that lists a process's children in /proc")
    others = set(children.read_text().split())
    run = make_run(tmp_path, 2)

    def kill(progress: Progress) -> None:
        if progress.block == 1:
            for pid in set(children.read_text().split()) - others:
                os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(WorkerLost, match="worker 1"):
        run.execute(kill)
    assert File(tmp_path / "trace.json").workers == ["worker 0"]
    assert "the trace is without worker 1" in caplog.text
    assert run.trace.traced is not None
    assert "worker" in run.trace.traced.describe()


def test_the_original_error_surfaces_where_no_trace_can_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    trace = TraceFile(folder / "trace.json")
    with pytest.raises(RuntimeError, match="out of memory"), trace, trace.own.walk(alone(CPU)):
        shutil.rmtree(folder)
        raise RuntimeError("out of memory")
    assert "the trace cannot be written to" in caplog.text


def test_what_fails_before_the_walk_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no weights"), TraceFile(tmp_path / "trace.json"):
        raise RuntimeError("no weights")
    assert list(tmp_path.iterdir()) == []


def test_a_full_recording_travels_in_pieces() -> None:
    trace, number = Trace(1, "host", 0.0), random.Random(0)
    for at in range(25_000):
        start = at + number.random() / 2
        trace(Action(1, Activity.TRANSFER, "ring exchange", start, start + 0.5, at))
    recording, store = trace.recording(25_001.0), LocalStore()
    put(store, recording)
    assert store.has("trace/1/1"), "a single piece is no test"
    assert take(store, 1, time.monotonic()) == recording
    assert store.get("trace/1/0") == "", "the store keeps what nobody needs"


@pytest.mark.cluster
def test_clocks_that_differ_become_one(tmp_path: Path) -> None:
    """The other worker's clock is 5,000 s ahead, as on another machine."""
    apart = ["unshare", "--time", "--monotonic", "5000", "--fork"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"]).returncode:
        pytest.skip("needs root and `unshare --time`, to give a process a clock of its own")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = tmp_path / "other.py"
    script.write_text(
        "import torch\n"
        "from time import monotonic\n"
        "from longtake.launch.tracing import Tracing\n"
        "from longtake.parallel.mesh import Rendezvous, open_mesh\n"
        "from longtake.scheduler.degrees import Degrees\n"
        "from longtake.scheduler.timeline import Action, Activity\n"
        "tracing, cpu = Tracing(True), torch.device('cpu')\n"
        f"meeting = Rendezvous('127.0.0.1', {port}, 1, 2, 30.0)\n"
        "with open_mesh(meeting, Degrees(ring=2), cpu, tracing.record) as mesh:\n"
        "    with tracing.walk(mesh):\n"
        "        mesh.world.barrier()\n"
        "        start = monotonic()\n"
        "        tracing.record(Action(1, Activity.COMPUTE, 'task', start, monotonic()))\n"
        "        mesh.world.barrier()\n"
    )
    other = subprocess.Popen([*apart, sys.executable, str(script)])
    trace = TraceFile(tmp_path / "trace.json")
    meeting = Rendezvous("127.0.0.1", port, 0, 2, 30.0)
    with open_mesh(meeting, Degrees(ring=2), CPU, trace.own.record) as mesh:
        with trace.own.walk(mesh):
            start = time.monotonic()
            mesh.world.barrier()
            mesh.world.barrier()
            trace.own.record(Action(0, Activity.COMPUTE, "around", start, time.monotonic()))
        trace.finish()
    assert other.wait(30) == 0
    file = File(tmp_path / "trace.json")
    (around,), (task,) = file.of(0, "compute"), file.of(1, "compute")
    assert around["ts"] <= task["ts"] <= task["ts"] + task["dur"] <= around["ts"] + around["dur"]
