"""The devices of this machine, and runners as processes of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from longtake.launch.fleet import Hear
from longtake.launch.leftovers import Leftovers
from longtake.launch.local_group import LocalGroup, runner_command
from longtake.runtime.durable import disk_errors
from longtake.runtime.memory import available_bytes
from longtake.scheduler.errors import UserError
from longtake.scheduler.queue_state import FleetDevice

HERE = "here"  # the name of this node
LEASE = 15.0  # seconds after which a runner that nobody speaks to stops by itself


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
