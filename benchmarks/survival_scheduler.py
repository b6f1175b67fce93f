"""The scheduler of `survival.py`: a process that answers lines of JSON, and its client.

    python benchmarks/survival_scheduler.py FOLDER (--devices N | --ray-address HOST:PORT)

The client starts the process again when it is gone, as a service manager would.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.launch.fleet import Fleet, Group, Hear, Message
    from longtake.scheduler.queue_state import FleetDevice

PROMPTS = (
    "a large red circle bouncing around slowly on a gray background",
    "a small blue square standing still on a pink background",
    "a small green triangle moving left and right quickly on a black background",
)
PATIENCE = 300.0  # seconds for the process to be started again
LEASE = 12.0


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


class Watched:
    """A fleet whose runners' news of blocks are noted in a file, a line of JSON each."""

    def __init__(self, fleet: Fleet, notes: Path) -> None:
        self._fleet, self.kind = fleet, fleet.kind
        self._notes, self._lock = notes.open("a"), threading.Lock()

    def devices(self) -> Sequence[FleetDevice]:
        return self._fleet.devices()

    def open(self, devices: Sequence[str], hear: Hear) -> Group:
        def noted(group: Group, message: Message) -> None:
            if message["tell"] == "begun":
                line = {key: message[key] for key in ("job", "epoch", "block")}
                with self._lock:
                    print(json.dumps(line), file=self._notes, flush=True)
            hear(group, message)

        return self._fleet.open(devices, noted)

    def close(self) -> None:
        self._fleet.close()


class Scheduler:
    """The process as its client sees it. `command` is how to run a command where it runs."""

    def __init__(
        self,
        folder: Path,
        logs: Path,
        words: Sequence[str],
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """What it keeps goes to `folder`; logs, and notes on blocks, to `logs`."""
        self.folder, self.log, self.notes = folder, logs / "scheduler.log", logs / "begun.jsonl"
        there = ("--notes", str(self.notes), str(folder))
        self._command = [*command, sys.executable, "-P", __file__, *words, *there]
        self._environment = environment
        self.start()

    def start(self) -> None:
        """Start the process, and wait until it serves."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            if self._answer() == "serving":
                return
            self.process.wait()
            time.sleep(1)
        raise RuntimeError(f"the scheduler did not start; see {self.log}")

    def submit(self, asked: Asked) -> str:
        """Have a request accepted; returns the job's id."""
        told = asdict(asked)
        del told["cues"]
        return str(self._ask({**told, "prompt": asked.prompt}))

    def jobs(self) -> list[dict[str, Any]]:
        """All, as they are now. If the process is gone, it is started again."""
        while True:
            try:
                if (jobs := self._ask(None)) is not None:
                    return list(jobs)
            except BrokenPipeError:
                pass
            self.kill()

    def kill(self) -> None:
        """As a power cut would, and start it again."""
        self.process.kill()
        self.process.wait()
        self.start()

    def close(self) -> None:
        """Let it end by itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, told: object) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline() or "null")


def serve(options: argparse.Namespace) -> None:
    """The process: takes a request and answers its id, takes null and answers all jobs."""
    from longtake.launch.central import Central
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
    rules = Rules(silence=12.0, crew=30.0, disk_pause=1.0, longest_backoff=4.0)
    folder = options.folder
    if options.ray_address is None:
        fleet: Fleet = LocalFleet(folder / "fleet", "cpu", options.devices, lease=LEASE)
    else:
        fleet = RayFleet(folder / "fleet", options.ray_address, lease=LEASE)
    if options.notes is not None:
        fleet = Watched(fleet, options.notes)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--ray-address")
    parser.add_argument("--notes", type=Path)
    serve(parser.parse_args())


if __name__ == "__main__":
    main()
