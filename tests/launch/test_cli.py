"""What the commands say, to people and to programs, and the exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import longtake
from longtake.launch.run import Run
from longtake.runtime.progress import Progress

PROMPT = "a large red circle bouncing around slowly on a gray background"
SHORT = ["--seconds", "0.5", "--steps", "1"]

Cli = Callable[..., Result]


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_tells_people(cli: Cli) -> None:
    result = cli("generate", PROMPT, *SHORT)
    assert result.exit_code == 0
    assert result.stdout.startswith("video.mp4: 8 frames, 0.5 s of video, made in ")
    assert result.stdout.endswith("the run is kept in video.run\n")
    begin, *progress = result.stderr.splitlines()
    assert begin.startswith("8 frames of 64x64 at 16 fps in 1 block by tinyworld on cpu")
    assert progress[-1].startswith("block 1/1, 8/8 frames, ")
    assert progress[-1].endswith(" elapsed, 0:00 left")
    assert cli("resume", "video.run").stdout == "video.mp4 was finished before\n"


def test_tells_programs(cli: Cli) -> None:
    result = cli("generate", PROMPT, *SHORT, "--json")
    assert result.exit_code == 0 and result.stderr == ""
    start, *progress, done = events(result.stdout)
    assert start["event"] == "start" and start["blocks"] == 1 and start["frames"] == 8
    assert start["request"]["cues"] == [{"at": 0.0, "text": PROMPT}]
    assert {event["event"] for event in progress} == {"progress"}
    assert progress[-1]["frames"] == 8 and progress[-1]["seconds_left"] == 0
    assert done["event"] == "done" and done["path"] == "video.mp4" and done["blocks_made"] == 1
    assert Path(done["run_dir"]).is_dir()


def test_tells_programs_of_trouble(cli: Cli) -> None:
    result = cli("generate", "a dog", "--json", "--size", "65x64")
    assert result.exit_code == 2
    (error,) = events(result.stdout)
    assert error["event"] == "error" and "can't be tiled" in error["message"]
    assert result.stderr == f"error: {error['message']}\n"


def test_warns_of_words_that_the_model_does_not_know(cli: Cli) -> None:
    result = cli("generate", "a dog", *SHORT)
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert "'a dog' is not a caption of the world; a legal one is" in warning
    assert result.exit_code == 0


def test_prompts_on_a_timeline(cli: Cli) -> None:
    cues = ["--prompt-at", "1=a blue square = on a pink background", "--prompt-at", "2=c"]
    result = cli("generate", PROMPT, *cues, "--seconds", "3", "--steps", "1", "--json")
    told = next(event for event in events(result.stdout) if event["event"] == "start")
    texts = [(cue["at"], cue["text"]) for cue in told["request"]["cues"]]
    assert texts == [(0.0, PROMPT), (1.0, "a blue square = on a pink background"), (2.0, "c")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_cleanly(
    number: signal.Signals, code: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, sent = Run.execute, threading.Event()
    before = signal.getsignal(number)

    def interrupted(run: Run, on_progress: Callable[[Progress], None]) -> Any:
        def watch(progress: Progress) -> None:
            if progress.block == 1 and not sent.is_set():
                sent.set()
                os.kill(os.getpid(), number)
            on_progress(progress)

        return execute(run, watch)

    monkeypatch.setattr(Run, "execute", interrupted)
    result = cli("generate", PROMPT, "--seconds", "3", "--steps", "1")
    assert result.exit_code == code
    assert "stopping after this block; once more to stop at once" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last == "stopped: 2 of 5 blocks are kept; go on with: longtake resume video.run"
    assert signal.getsignal(number) == before
    monkeypatch.setattr(Run, "execute", execute)
    assert cli("resume", "video.run").exit_code == 0
    assert Path("video.mp4").exists()


def test_eval_reads_the_prompts_of_the_run(cli: Cli, whole_run: Path) -> None:
    result = cli("eval", whole_run.with_suffix(".mp4"), "--json")
    assert result.exit_code == 0 and result.stderr == ""
    report = json.loads(result.stdout)
    assert report["frames"] == 64 and len(report["switch_seconds"]) == 1
    table = cli("eval", whole_run.with_suffix(".mp4"), "--prompt", PROMPT).stdout
    assert "matching" in table and "switch seconds" not in table
    assert cli("eval", whole_run.with_suffix(".mp4"), "--prompt", "a dog").exit_code == 2
    assert "there is no video at" in cli("eval", "nothing.mp4").stderr


def test_eval_without_a_run(cli: Cli, whole_run: Path) -> None:
    Path("alone.mp4").write_bytes(whole_run.with_suffix(".mp4").read_bytes())
    result = cli("eval", "alone.mp4", "--json")
    assert json.loads(result.stdout)["matching"] is None
    assert result.stderr.startswith("warning: judged without a prompt: there is no run beside")


def test_models_are_listed(cli: Cli, tinyworld: Path) -> None:
    table = cli("models").stdout
    rows = {line.split()[0]: line for line in table.splitlines() if " fps " in line}
    assert "ready" in rows["tinyworld"] and "64x64" in rows["tinyworld"]
    assert "1280x720" in rows["wan2.1-t2v-14b"]
    assert "hf download Wan-AI/Wan2.1-T2V-14B" in " ".join(table.split())
    assert "a [SIZE] COLOR SHAPE MOTION [SPEED] on a BACKGROUND background" in table


@pytest.mark.parametrize("words", [["generate"], ["generate", PROMPT, "--seconds", "x"], ["fly"]])
def test_wrong_usage_is_exit_code_2(words: list[str], cli: Cli) -> None:
    assert cli(*words).exit_code == 2


@pytest.mark.parametrize(
    ("word", "expected"), [("--help", "generate"), ("--version", longtake.__version__)]
)
def test_help_and_version_load_nothing_heavy(word: str, expected: str) -> None:
    code = f"""
import sys
sys.argv = ["longtake", {word!r}]
from longtake.launch.cli import app
try:
    app()
finally:
    print(*{{name.partition(".")[0] for name in sys.modules}})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, modules = run.stdout.splitlines()
    assert expected in "\n".join(text)
    assert not {"torch", "diffusers", "hydra", "av"} & set(modules.split())
