"""Jobs on a real SLURM: they meet without being told where, end, and go on when they come back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Slurm

pytestmark = pytest.mark.cluster

PROMPT = "a large red circle bouncing around slowly on a gray background"

MEET = """
import json, os, sys
from datetime import timedelta
from longtake.launch.surroundings import find

here = find(os.environ)
if here is None:
    print(json.dumps(None))
    sys.exit()
from torch.distributed import TCPStore
store = TCPStore(here.address, here.port, here.world, here.rank == 0, timedelta(seconds=60))
store.set(f"pid of {here.rank}", str(os.getpid()))
pids = [int(store.get(f"pid of {rank}")) for rank in range(here.world)]
store.add("done", 1)
while here.rank == 0 and store.add("done", 0) < here.world:
    pass  # it holds the store
print(json.dumps([here.rank, here.local_rank, here.local_world, os.getpid(), pids]))
"""


def submit(slurm: Slurm, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "longtake", "slurm", "submit", *words)
    return slurm.attempt(*command, cwd=folder)


def job_of(said: subprocess.CompletedProcess[str]) -> tuple[int, Path]:
    """The number of the job and its log."""
    match = re.fullmatch(r"job (\d+) is submitted; its script is .*, its log (.*)\n", said.stdout)
    assert match is not None, said.stdout + said.stderr
    return int(match[1]), Path(match[2])


def manifest_of(run_dir: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((run_dir / "manifest.json").read_text())
    return manifest


def journaled(run_dir: Path) -> list[int]:
    """The block of each line of the journal: one for every time a block was made."""
    journal = run_dir / "journal.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [json.loads(line)["block"] for line in lines]


def test_tasks_meet_where_the_variables_say(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "meet.py").write_text(MEET)
    (tmp_path / "job.sh").write_text(
        f"#!/bin/bash\n{sys.executable} meet.py\nsrun {sys.executable} meet.py\n"
    )
    shape = ("--ntasks=2", "--output=log", "--parsable")
    job = int(slurm.run("sbatch", *shape, tmp_path / "job.sh", cwd=tmp_path))
    facts = slurm.wait(job, "COMPLETED", "FAILED")
    log = (tmp_path / "log").read_text()
    assert facts["JobState"] == "COMPLETED", log
    alone, *tasks = [json.loads(line) for line in log.splitlines()]
    assert alone is None  # the batch script has a rank, but no srun around it
    (*first, first_pid, pids), (*second, second_pid, same_pids) = sorted(tasks)
    assert first == [0, 0, 2] and second == [1, 1, 2]
    assert pids == same_pids == [first_pid, second_pid]


@pytest.mark.parametrize("tasks", [1, 2])
def test_job_runs_to_its_end(tasks: int, slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / """it's a "50%j" folder"""
    folder.mkdir()
    shape = ("--tasks-per-node", str(tasks), "--time", "10")
    said = submit(slurm, folder, *shape, "--", PROMPT, "--seconds", "1")
    job, log = job_of(said)
    facts = slurm.wait(job, "COMPLETED", "FAILED")
    assert facts["JobState"] == "COMPLETED", log.read_text()
    assert "16 frames, 1 s of video" in log.read_text()
    manifest = manifest_of(folder / "video.run")
    assert manifest["status"] == "finished"
    assert manifest["config"]["parallel"]["workers"] == tasks
    assert manifest["request"]["cues"] == [{"at": 0.0, "text": PROMPT}]
    assert (folder / "video.mp4").stat().st_size > 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "video.mp4",
        "video.run",
        f"video.run.{job}.log",
        "video.run.sbatch",
    ]


@pytest.mark.slow
def test_requeued_job_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    """It comes back by itself after the signal before the time limit, and when it is requeued."""
    shape = ("--tasks-per-node", "2")
    said = submit(slurm, tmp_path, *shape, "--", PROMPT, "--seconds", "20", "--steps", "1")
    job, log = job_of(said)
    run_dir = tmp_path / "video.run"

    def wait_for_blocks(count: int) -> None:
        slurm.wait_for(lambda: len(journaled(run_dir)) >= count, lambda: log.read_text())

    def wait_for_restart(count: int) -> None:
        facts = slurm.wait(job, "PENDING", "COMPLETED", "FAILED")
        assert (facts["JobState"], facts["Restarts"]) == ("PENDING", str(count)), log.read_text()
        slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # else in two minutes

    wait_for_blocks(2)
    slurm.run("scancel", "--signal=TERM", str(job))  # what --signal does before the time limit
    wait_for_restart(1)
    stopped = manifest_of(run_dir)
    assert stopped["status"] == "stopped"

    wait_for_blocks(len(journaled(run_dir)) + 2)
    slurm.run("scontrol", "requeue", str(job))  # as for another job's sake: no time to end
    wait_for_restart(2)

    facts = slurm.wait(job, "COMPLETED", "FAILED")
    assert facts["JobState"] == "COMPLETED" and facts["Restarts"] == "2", log.read_text()
    manifest = manifest_of(run_dir)
    assert manifest["status"] == "finished"
    assert manifest["runs"][-1]["frames"] == 320
    made = [run["blocks_made"] for run in manifest["runs"]]
    assert made[0] >= 2 and manifest["runs"][-1]["blocks_restored"] >= made[0] + 2
    assert journaled(run_dir) == list(range(manifest["blocks"]))  # none was made twice


def test_refusal_of_sbatch_is_told(slurm: Slurm, tmp_path: Path) -> None:
    said = submit(slurm, tmp_path, "--partition", "nowhere", "--", PROMPT)
    assert said.returncode == 2 and said.stdout == ""
    assert said.stderr.startswith("error: sbatch refused the job: ")
    assert "invalid partition specified: nowhere" in said.stderr and said.stderr.count("\n") == 1
