"""Kill a run at random moments, resume it, and compare with the run that was left alone.

    python benchmarks/kill_resume.py [--trials 20] [--seconds 20] [--steps 8] [--seed 0] [--json]
    python benchmarks/kill_resume.py --trials 3 --strategies cascade dual stream --workers 2

Each trial starts the command line in a process of its own, kills it (SIGKILL) at a moment drawn
evenly from the time that a whole run takes, and resumes it. Held against the whole run are the
latents of every block and the finished file, byte by byte; and how often each block was denoised,
by the lines of the journal. The exit code is 1 if any trial differs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

PROMPT = "a large red circle bouncing around slowly on a gray background"
SWITCHED = "a small blue square moving left and right on a teal background"
LONGTAKE = [sys.executable, "-P", "-m", "longtake"]


@dataclass(frozen=True)
class Trial:
    """One kill. `killed_at` in seconds after the start, None if the run was over before it."""

    number: int
    strategy: str
    killed_at: float | None
    blocks_kept: int
    blocks_made_after: int
    denoised_twice: int
    same_latents: bool
    same_video: bool
    resume_seconds: float

    @property
    def passed(self) -> bool:
        """Whether the kill left no trace."""
        return self.same_latents and self.same_video and self.denoised_twice == 0


def command(options: argparse.Namespace, strategy: str, out: Path) -> list[str]:
    """The run, with a switch of prompt in the middle."""
    return [
        *LONGTAKE,
        *("generate", PROMPT, "--prompt-at", f"{options.seconds / 2}={SWITCHED}"),
        *("--seconds", str(options.seconds), "--steps", str(options.steps)),
        *("--strategy", strategy, "--workers", str(options.workers)),
        *("--out", str(out), "--json"),
    ]


def wait_for(event: str, stream: IO[str]) -> dict[str, Any]:
    """Read events until one comes; an empty one if the stream ends before it."""
    for line in stream:
        told: dict[str, Any] = json.loads(line)
        if told["event"] == event:
            return told
    return {}


def finish(words: list[str]) -> float:
    """Run a command to its end; returns the seconds it took, without the start of Python."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        wait_for("start", process.stdout)
        start = time.monotonic()
        done = wait_for("done", process.stdout)
        seconds = time.monotonic() - start
    if not done:
        raise SystemExit(f"this did not finish: {' '.join(words)}")
    return seconds


def kill_at(words: list[str], moment: float) -> float | None:
    """Start a command and kill it `moment` seconds after it began; None if it was over by then."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        wait_for("start", process.stdout)
        time.sleep(moment)
        over = process.poll() is not None
        process.kill()
    return None if over else moment


def journal(run_dir: Path) -> list[int]:
    """The blocks in the order in which they were denoised; a line torn by the kill counts not."""
    path = run_dir / "journal.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["block"] for line in lines]


def latents(run_dir: Path) -> dict[str, bytes]:
    """The file of every block."""
    return {file.name: file.read_bytes() for file in (run_dir / "blocks").glob("*.safetensors")}


def run_trial(
    number: int, strategy: str, moment: float, options: argparse.Namespace, folder: Path
) -> Trial:
    """Kill, resume and compare."""
    out, whole = folder / f"{strategy}{number}.mp4", folder / f"{strategy}.mp4"
    words = command(options, strategy, out)
    run_dir = out.with_suffix(".run")
    killed_at = kill_at(words, moment)
    kept = journal(run_dir)
    begun = (run_dir / "manifest.json").exists()
    again = [*LONGTAKE, "resume", str(run_dir), "--json"] if begun else words
    seconds = finish(again)
    made = journal(run_dir)
    return Trial(
        number=number,
        strategy=strategy,
        killed_at=killed_at,
        blocks_kept=len(kept),
        blocks_made_after=len(made) - len(kept),
        denoised_twice=len(made) - len(set(made)),
        same_latents=latents(run_dir) == latents(whole.with_suffix(".run")),
        same_video=out.read_bytes() == whole.read_bytes(),
        resume_seconds=seconds,
    )


def table(trials: list[Trial]) -> str:
    """The trials as Markdown."""
    lines = [
        "| trial | strategy | killed at (s) | blocks kept | made after | denoised twice "
        "| same latents | same video | resume (s) |",
        "|--:|---|--:|--:|--:|--:|---|---|--:|",
    ]
    for trial in trials:
        moment = "over" if trial.killed_at is None else f"{trial.killed_at:.2f}"
        lines.append(
            f"| {trial.number} | {trial.strategy} | {moment} | {trial.blocks_kept} | "
            f"{trial.blocks_made_after} | {trial.denoised_twice} | "
            f"{'yes' if trial.same_latents else 'NO'} | "
            f"{'yes' if trial.same_video else 'NO'} | {trial.resume_seconds:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20, help="of each strategy")
    parser.add_argument("--strategies", nargs="+", default=["causal"], metavar="NAME")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the video")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        took, trials = {}, []
        for strategy in options.strategies:
            took[strategy] = finish(command(options, strategy, folder / f"{strategy}.mp4"))
            for number in range(1, options.trials + 1):
                moment = draw.uniform(0.0, took[strategy])
                trials.append(run_trial(number, strategy, moment, options, folder))
    passed = sum(trial.passed for trial in trials)
    if options.json:
        print(json.dumps({"whole_seconds": took, "trials": [asdict(trial) for trial in trials]}))
    else:
        whole = ", ".join(f"{strategy} {seconds:.1f} s" for strategy, seconds in took.items())
        print(f"whole runs: {whole}\n\n{table(trials)}\n\n{passed} of {len(trials)} passed")
    sys.exit(0 if passed == len(trials) else 1)


if __name__ == "__main__":
    main()
