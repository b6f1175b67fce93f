"""The batch script says exactly what was asked, and knows what to run and when to come back.

`sbatch`, `srun` and `scontrol` are stand-ins here; `tests/cluster` has the real ones.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from longtake.launch.slurm import Batch, Job, read_time
from longtake.scheduler.errors import UserError

NASTY = """it's a "red" $HOME `id` \\ * circle; {exit} %s #1 \n & ünïcode"""

Cli = Callable[..., Result]
Programs = Callable[..., Path]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A function that puts a stand-in first on the path; returns the file where it notes its words,
    a line of JSON for each call."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, then: str = "") -> Path:
        notes = tmp_path / f"{name}.notes"
        note = f"import json, sys; print(json.dumps(sys.argv[1:]), file=open({str(notes)!r}, 'a'))"
        (folder / name).write_text(
            f'#!/bin/sh\n{shlex.join([sys.executable, "-S", "-c", note])} "$@"\n{then}\n'
        )
        (folder / name).chmod(0o755)
        return notes

    return put


def calls(notes: Path) -> list[list[str]]:
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def run(script: str, folder: Path) -> int:
    return subprocess.run(["bash", "-c", script], cwd=folder, check=False).returncode


def directives(script: str) -> dict[str, str]:
    lines = [line.split(" ", 1)[1] for line in script.splitlines() if line.startswith("#SBATCH ")]
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines}


def test_words_reach_the_run_as_they_are(tmp_path: Path, programs: Programs) -> None:
    notes = programs("srun")
    words = (NASTY, "--prompt-at", f"2={NASTY}", "")
    batch = Batch(Job(cpus_per_task=3), words, tmp_path / "a b's.run")
    assert run(batch.script(tmp_path), tmp_path) == 0
    longtake = ["--cpus-per-task=3", sys.executable, "-P", "-m", "longtake"]
    assert calls(notes) == [[*longtake, "generate", *words]]


@pytest.mark.parametrize(
    ("anew", "begun", "word"),
    [
        (False, None, "generate"),
        (False, "before", "resume"),
        (False, "since", "resume"),
        (True, None, "generate"),
        (True, "before", "generate"),
        (True, "since", "resume"),
    ],
)
def test_goes_on_with_what_the_job_began(
    anew: bool, begun: str | None, word: str, tmp_path: Path, programs: Programs
) -> None:
    notes = programs("srun")
    batch = Batch(Job(), ("a dog",), tmp_path / "it's.run", anew)
    batch.path.write_text(batch.script(tmp_path))
    if begun is not None:
        manifest = batch.run_dir / "manifest.json"
        manifest.parent.mkdir()
        manifest.touch()
        written = batch.path.stat().st_mtime
        age = written + (10 if begun == "since" else -10)
        os.utime(manifest, (age, age))
    run(batch.path.read_text(), tmp_path)
    ((*_, said, what),) = calls(notes)
    assert said == word
    assert what == (str(batch.run_dir) if word == "resume" else "a dog")


@pytest.mark.parametrize(
    ("code", "new_blocks", "requeue", "comes_back"),
    [
        (143, 1, True, True),
        (143, 0, True, False),  # it would stop like this for ever
        (143, 1, False, False),
        (2, 1, True, False),
        (0, 1, True, False),
    ],
)
def test_comes_back_after_the_time_limit_only(
    code: int,
    new_blocks: int,
    requeue: bool,
    comes_back: bool,
    tmp_path: Path,
    programs: Programs,
) -> None:
    run_dir = tmp_path / "video.run"
    run_dir.mkdir()
    journal = run_dir / "journal.jsonl"
    journal.write_text("{}\n" * 11)
    lines = f"echo >> {shlex.quote(str(journal))}\n" * new_blocks
    programs("srun", f"{lines}exit {code}")
    notes = programs("scontrol")
    script = Batch(Job(requeue=requeue), ("a dog",), run_dir).script(tmp_path)
    assert run(f"SLURM_JOB_ID=7\n{script}", tmp_path) == code
    assert calls(notes) == ([["requeue", "7"]] if comes_back else [])


def test_asks_slurm_for_what_was_asked(cli: Cli) -> None:
    said = cli(
        *("slurm", "submit", "--dry-run", "--nodes", "2", "--gpus-per-node", "a100:4"),
        *("--cpus-per-task", "6", "--time", "1-12", "--partition", "gpu", "--account", "me"),
        *("--job-name", 'my "long" \\ film', "--no-requeue", "--signal", "300"),
        *("--", "a dog", "--out", "100%.mp4"),
    )
    assert said.exit_code == 0
    here = Path.cwd()
    assert directives(said.stdout) == {
        "--job-name": r'"my \"long\" \\ film"',
        "--nodes": "2",
        "--ntasks-per-node": "4",
        "--gpus-per-node": "a100:4",
        "--cpus-per-task": "6",
        "--time": "1-12",
        "--partition": "gpu",
        "--account": "me",
        "--signal": "TERM@300",
        "--chdir": str(here),
        "--output": f"{here}/100%%.run.%j.log",
        "--open-mode": "append",
        "--no-requeue": "",
    }
    assert f"generate --run-dir {here}/100%.run 'a dog' --out 100%.mp4\n" in said.stdout
    assert list(here.iterdir()) == []


def test_leaves_to_the_cluster_what_was_not_asked(cli: Cli) -> None:
    asked = directives(cli("slurm", "submit", "--dry-run", "--", "a dog").stdout)
    assert asked["--nodes"] == asked["--ntasks-per-node"] == "1"
    assert asked["--signal"] == "TERM@60" and "--requeue" in asked
    left = {"--time", "--partition", "--account", "--gpus-per-node", "--cpus-per-task"}
    assert not left & asked.keys()


def test_submits(cli: Cli, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS", "SLURM_CONF"):
        monkeypatch.setenv(name, name.lower())
    notes = programs("sbatch", 'echo "42;cluster"; env > env.txt')
    said = cli("slurm", "submit", "--", "a dog", "--run-dir", "kept")
    assert said.exit_code == 0
    run_dir = Path.cwd() / "kept"
    assert said.stdout == (
        f"job 42 is submitted; its script is {run_dir}.sbatch, its log {run_dir}.42.log\n"
    )
    assert calls(notes) == [["--parsable", f"{run_dir}.sbatch"]]
    assert "generate 'a dog' --run-dir kept\n" in Path("kept.sbatch").read_text()
    environment = Path("env.txt").read_text().splitlines()
    assert "SLURM_CONF=slurm_conf" in environment
    assert not any(line.startswith("SLURM_NTASKS=") for line in environment)


def test_refusal_is_told(cli: Cli, programs: Programs) -> None:
    programs("sbatch", "echo 'sbatch: error: one' >&2; echo 'sbatch: error: two' >&2; exit 1")
    said = cli("slurm", "submit", "--", "a dog")
    assert said.exit_code == 2
    assert said.stderr == "error: sbatch refused the job: one; two\n" and said.stdout == ""


def test_without_sbatch(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path.cwd()))
    said = cli("slurm", "submit", "--", "a dog")
    assert said.exit_code == 2 and said.stderr.startswith("error: sbatch is not on the path")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes", "0"], "error: --nodes must be at least 1, got 0"),
        (["--tasks-per-node", "0"], "error: --tasks-per-node must be at least 1, got 0"),
        (["--cpus-per-task", "-1"], "error: --cpus-per-task must be at least 1, got -1"),
        (["--gpus-per-node", "0"], "error: --gpus-per-node must be a number of at least 1"),
        (["--gpus-per-node", "4:a100"], "error: --gpus-per-node must be a number of at least 1"),
        (["--time", "soon"], "error: --time must be MINUTES, "),
        (["--time", "0:00"], "error: --time must be more than 0"),
        (["--time", "1"], "error: --time 1 ends before the run is told to stop, 60 seconds"),
        (["--signal", "65536"], "error: --signal must be within 0 .. 65535 seconds, got 65536"),
        (["--job-name", "a\nb"], "error: SLURM takes no --job-name with a line break"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], message: str, cli: Cli) -> None:
    said = cli("slurm", "submit", *options, "--dry-run", "--", "a dog")
    assert said.exit_code == 2 and said.stdout == ""
    assert said.stderr.startswith(message) and said.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a dog", "--bogus"], "No such option"),
        (["a dog", "--seconds", "ten"], "Invalid value for '--seconds'"),
        (["a dog", "--out", "there/video.mp4"], "there is no folder"),
        (["a dog", "--run-dir", "file"], "the run directory must be a folder"),
        (["a dog", "--run-dir", "a\\b"], "no path of a log with a backslash"),
    ],
)
def test_wrong_words_are_told_before_the_queue(words: list[str], message: str, cli: Cli) -> None:
    Path("file").touch()
    said = cli("slurm", "submit", "--dry-run", "--", *words)
    assert said.exit_code == 2 and said.stdout == "" and message in said.stderr


def test_a_run_that_is_there_is_told(cli: Cli) -> None:
    Path("video.run").mkdir()
    Path("video.run/manifest.json").touch()
    said = cli("slurm", "submit", "--dry-run", "--", "a dog")
    assert said.exit_code == 0 and "video.run holds a run: the job goes on with it" in said.stderr
    said = cli("slurm", "submit", "--dry-run", "--", "a dog", "--force")
    assert said.exit_code == 0 and said.stderr == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:30", 7230),
        ("1-2", 93600),
        ("1-2:03", 93780),
        ("1-2:03:04", 93784),
    ],
)
def test_times(text: str, seconds: int) -> None:
    assert read_time(text) == seconds


@pytest.mark.parametrize("text", ["", "1:2:3:4", "-5", "1-", "1d", "1.5", "1:", ":1", "1-2:3:4:5"])
def test_wrong_times(text: str) -> None:
    with pytest.raises(UserError, match="--time must be MINUTES"):
        read_time(text)
