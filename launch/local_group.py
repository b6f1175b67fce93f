"""A runner of this host, as a process of its own; nothing here needs torch, nor waits for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from longtake.launch.fleet import GONE, Hear, Message
from longtake.launch.leftovers import Leftovers

LAST_LINES = 3  # of the log of a runner that died, which tell why


def runner_command(devices: Sequence[str], lease: float, log_format: str) -> Sequence[str]:
    """What starts a runner."""
    words = ["--lease", str(lease), "--log", log_format, "--worker", "+".join(devices)]
    return [sys.executable, "-P", "-m", "longtake.launch.runner", *words]


def worker_command(rendezvous: str, local_rank: int) -> Sequence[str]:
    """What starts a worker as a process of this host; `rendezvous` is a `Rendezvous` as JSON."""
    return [sys.executable, "-P", "-m", "longtake.launch.worker", rendezvous, str(local_rank)]


class LocalGroup:
    """A runner of this machine; its workers are in its group of processes."""

    def __init__(
        self,
        devices: tuple[str, ...],
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        leftovers: Leftovers,
        hear: Hear,
    ) -> None:
        self.devices, self.gone = devices, threading.Event()
        self._log, self._hear = log, hear
        with log.open("ab") as file:
            self._log_start = file.tell()
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        try:
            self._record = leftovers.add(self._process.pid)
        except OSError:
            self.kill()
            raise
        self._writing = threading.Lock()
        threading.Thread(target=self._listen, name=f"{devices[0]} says", daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the runner."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """See `Group`."""
        assert self._process.stdin is not None
        with self._writing, suppress(BrokenPipeError, ValueError):  # it says itself that it is gone
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """See `Group`."""
        self._end_all()
        self._process.wait()

    def _end_all(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._hear(self, json.loads(line))
        if self._process.returncode is None:  # its workers would outlive it, and hold memory
            self._end_all()
        code = self._process.wait()
        self._record.unlink(missing_ok=True)
        self.gone.set()
        crashed = code not in (-signal.SIGKILL, -signal.SIGTERM)
        self._hear(self, {"tell": GONE, "crashed": crashed, "reason": self._explain(code)})

    def _explain(self, code: int) -> str:
        if code < 0:
            return f"the runner (process {self.pid}) was killed by signal {-code}"
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            said = file.read().decode(errors="replace").strip().splitlines()[-LAST_LINES:]
        last = f": {' / '.join(said)}" if said and code else ""
        return f"the runner (process {self.pid}) ended with code {code}{last}"
