"""The workers of a run that rank 0 starts itself, as processes of its host."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from longtake.launch.local_group import worker_command
from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import Rendezvous
from longtake.runtime.durable import disk_errors

GRACE = 10.0  # seconds for workers to end by themselves


@dataclass
class Children:
    """Processes by rank; their output goes to `logs`."""

    logs: Path
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, at: Rendezvous) -> None:
        """Start all ranks but 0, in our group of processes, so that all can be ended at once.

        Raises:
            UserError: the disk refuses their logs.
        """
        for rank in range(1, at.world):
            with self._open_log(rank) as log:
                self.processes[rank] = subprocess.Popen(
                    worker_command(json.dumps(asdict(replace(at, rank=rank))), rank),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

    def _open_log(self, rank: int) -> BinaryIO:
        with disk_errors(self.logs):
            self.logs.mkdir(parents=True, exist_ok=True)
            return self.log(rank).open("wb")

    def log(self, rank: int) -> Path:
        """Where a worker's output goes."""
        return self.logs / f"worker-{rank}.log"

    def check(self) -> None:
        """See that all processes run.

        Raises:
            CommunicationError: one has ended.
        """
        ended = [rank for rank, process in self.processes.items() if process.poll() is not None]
        if ended:
            raise CommunicationError("start", 0, ended, "the process has ended")

    def deaths(self) -> list[str]:
        """What is known of those that ended; of those that were killed, if there are any."""
        codes = {rank: process.poll() for rank, process in self.processes.items()}
        ended = {rank: code for rank, code in codes.items() if code}
        killed = {rank: code for rank, code in ended.items() if code < 0}
        told = []
        for rank, code in (killed or ended).items():
            why = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            pid = self.processes[rank].pid
            told.append(f"process {pid} of worker {rank} {why}, see {self.log(rank)}")
        return told

    def kill(self) -> None:
        """End all at once, from any thread."""
        there = list(self.processes.values())
        for process in there:
            process.kill()
        for process in there:
            with suppress(subprocess.TimeoutExpired):  # the kernel holds it; nothing ends it sooner
                process.wait(GRACE)

    def end(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the processes to end, which after an error they may not: they are killed then,
        as those are that take too long."""
        for process in self.processes.values():
            if error is not None:
                process.kill()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
