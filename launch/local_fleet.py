"""The devices of this machine, and runners as processes of it."""

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

import torch

from longtake.launch.fleet import GONE, Hear, Message
from longtake.launch.leftovers import Leftovers
from longtake.runtime.durable import disk_errors
from longtake.runtime.memory import available_bytes
from longtake.scheduler.errors import UserError
from longtake.scheduler.queue_state import FleetDevice

HERE = "here"  # the name of this node
LEASE = 15.0  # seconds after which a runner that nobody speaks to stops by itself
LAST_LINES = 3  # of the log of a runner that died, which tell why


class LocalFleet:
    """GPUs of this machine, or equal shares of its cores.

    A second fleet on the same `folder` ends the runners that the first one left behind, as a
    process that was killed does.

    Attributes:
        groups: those that were opened; some may be gone.
    """

    def __init__(
        self,
        folder: Path,
        kind: str = "auto",
        count: int | None = None,
        lease: float = LEASE,
        log_format: str = "text",
    ) -> None:
        """Logs go to `folder`; `kind` is auto, cpu or cuda; `count` devices, None: all GPUs, or 1.

        Raises:
            UserError: there are not so many.
        """
        gpus = torch.cuda.device_count()
        if kind not in ("auto", "cpu", "cuda"):
            raise UserError(f"devices are auto, cpu or cuda; got {kind!r}")
        self.kind = ("cuda" if gpus else "cpu") if kind == "auto" else kind
        self._count = (gpus if self.kind == "cuda" else 1) if count is None else count
        if self._count < 1 or (self.kind == "cuda" and self._count > gpus):
            raise UserError(f"this machine has {gpus} GPUs, {self._count} were asked for")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._lease, self._log_format = folder, lease, log_format
        self._leftovers = Leftovers(folder / "runners")
        self._leftovers.end_all()
        self._devices = [self._describe(number) for number in range(self._count)]
        self.groups: set[LocalGroup] = set()

    def devices(self) -> Sequence[FleetDevice]:
        """See `Fleet`."""
        return self._devices

    def open(self, devices: Sequence[str], hear: Hear) -> LocalGroup:
        """See `Fleet`."""
        with disk_errors(self._folder):
            group = LocalGroup(
                tuple(devices),
                runner_command(devices, self._lease, self._log_format),
                {**os.environ, **self._environment(devices)},
                self._folder / f"{devices[0]}.log",
                self._leftovers,
                hear,
            )
        self.groups = {other for other in self.groups if not other.gone.is_set()} | {group}
        return group

    def close(self) -> None:
        """See `Fleet`."""
        for group in self.groups:
            group.kill()

    def _describe(self, number: int) -> FleetDevice:
        if self.kind == "cuda":
            memory = torch.cuda.get_device_properties(number).total_memory
        else:
            memory = available_bytes(torch.device("cpu")) // self._count
        return FleetDevice(f"{self.kind}{number}", HERE, memory)

    def _environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """What gives a runner and its workers their devices and no others."""
        numbers = [int(name.removeprefix(self.kind)) for name in dict.fromkeys(devices)]
        if self.kind == "cuda":
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = seen.split(",") if seen else [str(n) for n in range(torch.cuda.device_count())]
            return {"CUDA_VISIBLE_DEVICES": ",".join(names[n] for n in numbers)}
        threads = max(1, (os.cpu_count() or 1) // self._count)
        own = int(os.environ.get("OMP_NUM_THREADS", threads))
        return {"OMP_NUM_THREADS": str(min(own, threads)), "CUDA_VISIBLE_DEVICES": ""}


def runner_command(devices: Sequence[str], lease: float, log_format: str) -> Sequence[str]:
    """What starts a runner."""
    words = ["--lease", str(lease), "--log", log_format, "--worker", "+".join(devices)]
    return [sys.executable, "-P", "-m", "longtake.launch.runner", *words]


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
