"""Does a cluster lose work? Twelve mixed requests from a second process, and faults all the while.

    python benchmarks/survival.py --seed 1 [--faults 30] [--requests 12] [--devices 2]

A central scheduler in a process of its own serves them on devices of this machine. At moments and
of kinds that the seed draws, processes are killed (a runner, a worker beside it, the scheduler),
stopped for some seconds and let go on, slowed down, or their disk is filled. At the end every video
must be, byte by byte, that of a run that nothing happened to, and no block may have been denoised
again after it was finished. Prints the faults and what came of them; exits with 1 if work was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROMPTS = (
    "a large red circle bouncing around slowly on a gray background",
    "a small blue square standing still on a pink background",
    "a small green triangle moving left and right quickly on a black background",
)
DISK = 256  # MiB of the file system that fills
# What is killed; what is stopped for 12 or 20 seconds; what is slowed down; the disk is full.
KINDS = (
    *("runner", "worker", "scheduler"),
    *("stop", "stop worker", "stop scheduler"),
    *("slow", "disk"),
)


@dataclass(frozen=True)
class Asked:
    """A request; `settings` as of `longtake generate --set`."""

    seconds: float
    seed: int
    strategy: str = "causal"
    steps: int = 8
    workers: int | None = None
    settings: tuple[str, ...] = ()
    cues: int = 1
    priority: str = "batch"

    @property
    def prompt(self) -> list[tuple[float, str]]:
        """Cues at even distances."""
        return [(n * self.seconds / self.cues, PROMPTS[n]) for n in range(self.cues)]


def requests(draw: random.Random) -> list[Asked]:
    """Twelve of different lengths, strategies and plans, two of them of two workers."""
    two = {"workers": 2, "settings": ("parallel.timeout=8",)}
    return [
        Asked(6.0, draw.randrange(1000), cues=2),
        Asked(4.0, draw.randrange(1000), steps=16),
        Asked(6.0, draw.randrange(1000), strategy="rolling", steps=5),
        Asked(5.0, draw.randrange(1000), cues=2, **two),
        Asked(4.0, draw.randrange(1000), strategy="cascade"),
        Asked(3.0, draw.randrange(1000), priority="interactive"),
        Asked(8.0, draw.randrange(1000), cues=3),
        Asked(3.0, draw.randrange(1000), strategy="stream", steps=4),
        Asked(4.0, draw.randrange(1000), strategy="bidirectional", steps=12),
        Asked(4.0, draw.randrange(1000), strategy="deep", priority="interactive"),
        Asked(4.0, draw.randrange(1000), steps=12, **two),
        Asked(5.0, draw.randrange(1000), settings=("strategy.window=9",)),
    ]


def serve(folder: Path, devices: int, ray_address: str | None) -> None:
    """The scheduler's process: answers lines of JSON: a request with its id, null with all jobs."""
    from longtake.launch.central import Central
    from longtake.launch.fleet import Fleet
    from longtake.launch.job_store import JobStore
    from longtake.launch.jobs import Ask
    from longtake.launch.local_fleet import LocalFleet
    from longtake.launch.logs import log_to
    from longtake.launch.ray_fleet import RayFleet
    from longtake.launch.rules import Rules

    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Ray has things to say there

    def answer(told: object) -> None:
        out.write(json.dumps(told) + "\n")
        out.flush()

    log_to(sys.stderr, "text")
    rules = Rules(silence=6.0, crew=8.0, disk_pause=1.0, longest_backoff=4.0)
    if ray_address is None:
        fleet: Fleet = LocalFleet(folder / "fleet", "cpu", devices, lease=6.0)
    else:
        fleet = RayFleet(folder / "fleet", ray_address, lease=6.0)
    store = JobStore(folder / "jobs.sqlite")
    with Central(store, fleet, folder / "videos", rules=rules) as central:
        answer("serving")
        for line in sys.stdin:
            told = json.loads(line)
            if told is None:
                answer([job.to_dict() for job in central.list(limit=100)])
            else:
                priority = told.pop("priority")
                answer(central.submit(Ask(**told), priority=priority).id)


class Scheduler:
    """The scheduler's process as its client sees it, who starts it again when it is gone."""

    def __init__(self, folder: Path, log: Path, devices: int) -> None:
        self.folder, self.log = folder, log
        self._command = [sys.executable, "-P", __file__, "--serve", str(folder)]
        self._command += ["--devices", str(devices)]
        self.start()

    def start(self) -> None:
        """Start the process, and wait until it serves."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        if self._answer() != "serving":
            raise RuntimeError(f"the scheduler did not start; see {self.log}")

    def submit(self, asked: Asked) -> str:
        """Have a request accepted; returns the job's id."""
        told = asdict(asked)
        del told["cues"]
        return str(self._ask({**told, "prompt": asked.prompt}))

    def jobs(self) -> list[dict[str, Any]]:
        """All, as they are now."""
        return list(self._ask(None))

    def runners(self) -> list[int]:
        """The ids of the processes of all groups' rank 0."""
        return [int(path.name) for path in (self.folder / "fleet" / "runners").iterdir()]

    def kill(self) -> None:
        """As a power cut would, and start it again."""
        self.process.kill()
        self.process.wait()
        self.start()

    def _ask(self, told: object) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline() or "null")


class Faults:
    """What goes wrong, and when: drawn from a seed."""

    def __init__(self, draw: random.Random, scheduler: Scheduler, kinds: Sequence[str]) -> None:
        self._draw, self._scheduler, self._kinds = draw, scheduler, kinds
        self.done: Counter[str] = Counter()
        self._deck: list[str] = []

    def strike(self) -> None:
        """Do one; a kind comes up again when all others have."""
        self._deck = self._deck or self._draw.sample(self._kinds, len(self._kinds))
        kind = self._deck.pop()
        pid = self._target(kind)
        if pid is None:
            return
        match kind:
            case "runner" | "worker":
                os.kill(pid, signal.SIGKILL)
            case "scheduler":
                self._scheduler.kill()
            case "disk":
                self._fill_disk(self._draw.uniform(2, 5))
            case "slow":
                for _ in range(15):
                    self._stop(pid, 0.25)
                    time.sleep(0.1)
            case _:
                self._stop(pid, 20.0 if kind == "stop" else 12.0)
        self.done[kind] += 1

    def _target(self, kind: str) -> int | None:
        if kind in ("scheduler", "stop scheduler", "disk"):
            return self._scheduler.process.pid
        runners = self._scheduler.runners()
        found = runners if "worker" not in kind else [w for r in runners for w in workers_of(r)]
        return self._draw.choice(found) if found else None

    @staticmethod
    def _stop(pid: int, seconds: float) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    def _fill_disk(self, seconds: float) -> None:
        filler = self._scheduler.folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        time.sleep(seconds)
        filler.unlink()


def workers_of(runner: int) -> list[int]:
    """The workers that a runner has started."""
    try:
        told = [
            path.read_text().split() for path in Path(f"/proc/{runner}/task").glob("*/children")
        ]
    except OSError:
        return []
    return [int(child) for children in told for child in children]


def judge(job: dict[str, Any], asked: Asked, alone: Path) -> list[str]:
    """What is wrong with a job, compared with the same video made in one go."""
    from longtake.launch.api import generate

    if job["status"] != "completed":
        return [f"it is {job['status']}: {job['error']}"]
    generate(
        asked.prompt,
        seconds=asked.seconds,
        seed=asked.seed,
        strategy=asked.strategy,
        steps=asked.steps,
        workers=asked.workers,
        settings=asked.settings,
        out=alone,
        overwrite=True,
    )
    folder, wrong = Path(job["folder"]), []
    if (folder / "video.mp4").read_bytes() != alone.read_bytes():
        wrong.append("its bytes differ")
    lines = (folder / "video.run" / "journal.jsonl").read_text().splitlines()
    made = Counter(told["block"] for line in lines if "block" in (told := json.loads(line)))
    twice = [block for block, times in made.items() if times > 1]
    if twice:
        wrong.append(f"blocks {twice} were finished more than once")
    if len(made) != job["blocks"]:
        wrong.append(f"{len(made)} of {job['blocks']} blocks are in the journal")
    return wrong


@contextmanager
def small_disk() -> Iterator[Path | None]:
    """A file system of its own, in memory, that can be filled; None where that is not permitted."""
    folder = Path(tempfile.mkdtemp(prefix="survival-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def trial(options: argparse.Namespace, folder: Path, disk: Path | None) -> tuple[bool, str]:
    """One seed: whether all survived, and a line that tells of it."""
    draw = random.Random(options.seed)
    asked = requests(draw)[: options.requests]
    scheduler = Scheduler((disk or folder) / "cluster", folder / "scheduler.log", options.devices)
    kinds = [kind for kind in options.kinds if kind != "disk" or disk is not None]
    faults = Faults(draw, scheduler, kinds)
    start = time.monotonic()
    ids, begun = [scheduler.submit(each) for each in asked], False
    try:
        while any(job["ended_at"] is None for job in scheduler.jobs()):
            if time.monotonic() - start > options.limit:
                break
            time.sleep(draw.uniform(*options.pause))
            begun = begun or any(job["blocks_done"] for job in scheduler.jobs())
            if begun and faults.done.total() < options.faults:
                faults.strike()
        jobs = {job["id"]: job for job in scheduler.jobs()}
    finally:
        assert scheduler.process.stdin is not None
        scheduler.process.stdin.close()
        scheduler.process.wait()
    took = time.monotonic() - start
    wrong = {
        id_: found
        for id_, each in zip(ids, asked, strict=True)
        if (found := judge(jobs[id_], each, folder / "alone.mp4"))
    }
    for id_, found in wrong.items():
        print(f"{id_}: {'; '.join(found)}")
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(faults.done.items()))
    epochs = sum(job["epoch"] for job in jobs.values())
    return not wrong, (
        f"seed {options.seed}: {len(asked) - len(wrong)} of {len(asked)} videos are whole and the "
        f"same after {faults.done.total()} faults ({told}); {epochs} groups in {took:.0f} s"
    )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ray-address", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for all to be through")
    parser.add_argument("--pause", type=float, nargs=2, default=(2.0, 8.0), metavar=("MIN", "MAX"))
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.devices, options.ray_address)
        return 0
    with small_disk() as disk:
        folder = Path(tempfile.mkdtemp(prefix="survival-"))
        survived, told = trial(options, folder, disk)
        print(told)
        if survived:
            shutil.rmtree(folder)
        else:
            print(f"logs are in {folder}")
    return 0 if survived else 1


if __name__ == "__main__":
    sys.exit(main())
