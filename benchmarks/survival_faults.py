"""What goes wrong in `survival.py`, and where: on this machine, or on two hosts with Ray."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from survival_scheduler import Scheduler

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "cluster"))
from hosts import Host, ray_environment, two_hosts

DISK = 256  # MiB of a file system that fills
PORT = 6398
STOPPED = 20.0  # seconds
# What is killed, stopped for 20 seconds, or slowed down; the disk is full.
KINDS = (
    *("runner", "worker", "scheduler"),
    *("stop", "stop worker", "stop scheduler"),
    *("slow", "disk"),
)
# A Ray node's processes, or all of its host's; its head's; the link between the hosts; its own
# disk, where Ray keeps its files.
HOST_KINDS = ("node", "host", "stop node", "link", "host disk", "head")


class Site(Protocol):
    """Where a trial takes place."""

    scheduler: Scheduler
    disk: Path | None  # the folder of the file system that has store, journals and videos

    def runners(self) -> list[int]:
        """The ids of the processes of all groups' rank 0."""
        ...

    def workers(self) -> list[int]:
        """Those of all others."""
        ...

    def strike(self, kind: str, draw: random.Random) -> str | None:
        """Do what other sites have not; returns what it was, None if that could not be done."""
        ...

    def mend(self) -> None:
        """What a service manager does: start again what has ended."""
        ...


class Faults:
    """What goes wrong, and when: drawn from a seed."""

    def __init__(self, draw: random.Random, site: Site, kinds: Sequence[str]) -> None:
        self._draw, self._site, self._kinds = draw, site, kinds
        self.done: Counter[str] = Counter()
        self._deck: list[str] = []
        self._start = time.monotonic()

    def strike(self) -> None:
        """Do one, and tell of it; a kind comes up again when all others have."""
        self._deck = self._deck or self._draw.sample(self._kinds, len(self._kinds))
        kind, at = self._deck.pop(), time.monotonic() - self._start
        what = self._do(kind)
        self._site.mend()
        if what is not None:
            self.done[kind] += 1
            print(f"{at:.0f} s: {kind}: {what}", file=sys.stderr, flush=True)

    def _do(self, kind: str) -> str | None:
        match kind:
            case "scheduler":
                self._site.scheduler.kill()
                return "killed"
            case "disk":
                return None if self._site.disk is None else fill(self._site.disk, self._draw)
            case "runner" | "worker" | "stop" | "stop worker" | "stop scheduler" | "slow":
                return self._signal(kind)
        return self._site.strike(kind, self._draw)

    def _signal(self, kind: str) -> str | None:
        pid = self._target(kind)
        if pid is None:
            return None
        if kind in ("runner", "worker"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return f"process {pid} killed"
        if kind == "slow":
            for _ in range(15):
                stop([pid], 0.25)
                time.sleep(0.1)
            return f"process {pid}"
        stop([pid], STOPPED)
        return f"process {pid} for {STOPPED:g} s"

    def _target(self, kind: str) -> int | None:
        if kind == "stop scheduler":
            return self._site.scheduler.process.pid
        found = self._site.workers() if "worker" in kind else self._site.runners()
        return self._draw.choice(found) if found else None


class ThisMachine:
    """Devices of this machine."""

    kinds = KINDS

    def __init__(self, logs: Path, disk: Path | None, devices: int) -> None:
        self.disk = disk
        folder = (disk or logs) / "cluster"
        self.scheduler = Scheduler(folder, logs, ["--devices", str(devices)])

    def runners(self) -> list[int]:
        folder = self.scheduler.folder / "fleet" / "runners"
        return sorted(int(path.name) for path in folder.iterdir())

    def workers(self) -> list[int]:
        return sorted(worker for runner in self.runners() for worker in children(runner))

    def strike(self, kind: str, draw: random.Random) -> str | None:
        raise ValueError(f"this machine alone has no {kind}")

    def mend(self) -> None:
        """Nothing ends here but the scheduler, which its client starts again."""


class TwoHosts:
    """A Ray cluster of two hosts, half of the devices on each; the scheduler is on the first, as
    Ray's head is. Each has a disk of its own, and both share the one of `disk`."""

    kinds = (*KINDS, *HOST_KINDS)

    def __init__(
        self, logs: Path, disk: Path, devices: int, hosts: tuple[Host, Host], own: Sequence[Path]
    ) -> None:
        self.disk, self._own, self._cpus = disk, own, devices // 2
        self._first, self._second = hosts
        self._environment = ray_environment()
        self._address = f"{self._first.address}:{PORT}"
        self._start_ray(self._first)
        self._start_ray(self._second)
        words, there = ["--ray-address", self._address], self._first.command()
        folder = disk / "cluster"
        self.scheduler = Scheduler(folder, logs, words, there, self._environment_of(self._first))

    def runners(self) -> list[int]:
        return self._all("longtake.launch.runner")

    def workers(self) -> list[int]:
        return self._all("longtake.launch.worker")

    def strike(self, kind: str, draw: random.Random) -> str | None:
        match kind:
            case "node":
                kill(self._ray(self._second))
                return f"Ray on {self._second.address} killed"
            case "host":
                self._second.kill_processes()
                return f"all on {self._second.address} killed"
            case "head":
                kill(self._ray(self._first))
                return f"Ray's head on {self._first.address} killed"
            case "stop node":
                stop(self._ray(self._second), STOPPED)
                return f"Ray on {self._second.address} for {STOPPED:g} s"
            case "link":
                seconds = draw.uniform(3, 30)
                self._first.cut()
                time.sleep(seconds)
                self._first.mend()
                return f"cut for {seconds:.0f} s"
            case "host disk":
                return fill(self._own[1], draw)
        raise ValueError(f"no such fault: {kind}")

    def mend(self) -> None:
        """Start Ray again where it has ended: nodes that lost their head start anew, too."""
        if not self._ray(self._first):
            kill(self._ray(self._second))
            self._start_ray(self._first)
        if not self._ray(self._second):
            self._start_ray(self._second)

    def _start_ray(self, host: Host) -> None:
        first = host is self._first
        how = ("--head", f"--port={PORT}", "--include-dashboard=false")
        words = how if first else ("--address", self._address)
        environment = self._environment_of(host)
        temporary = ("--temp-dir", environment["TMPDIR"])
        host.start_ray(*words, *temporary, cpus=self._cpus, environment=environment)

    def _environment_of(self, host: Host) -> Mapping[str, str]:
        return {**self._environment, "TMPDIR": str(self._own[host is not self._first])}

    def _all(self, words: str) -> list[int]:
        return sorted(pid for host in (self._first, self._second) for pid in host.processes(words))

    @staticmethod
    def _ray(host: Host) -> list[int]:
        return [pid for name in ("gcs_server", "raylet/raylet") for pid in host.processes(name)]


@contextmanager
def this_machine(logs: Path, devices: int) -> Iterator[ThisMachine]:
    """Devices of this machine, and a disk to fill if that is permitted."""
    with ExitStack() as end:
        try:
            disk = end.enter_context(small_disk("shared"))
        except subprocess.CalledProcessError:
            disk = None
        yield ThisMachine(logs, disk, devices)


@contextmanager
def two_hosts_with_ray(logs: Path, devices: int) -> Iterator[TwoHosts]:
    """Two hosts; raises `NoHostsHere` where they can't be made, as without root."""
    with ExitStack() as end:
        hosts = end.enter_context(two_hosts())
        disk, *own = (end.enter_context(small_disk(name)) for name in ("shared", "first", "second"))
        yield TwoHosts(logs, disk, devices, hosts, own)
        for host in hosts:
            host.end_processes()


@contextmanager
def small_disk(name: str) -> Iterator[Path]:
    """A file system of its own, in memory, that can be filled."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))  # short: a socket's path is short
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, capture_output=True, check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        folder.rmdir()


def fill(disk: Path, draw: random.Random) -> str:
    """A full disk, for some seconds."""
    filler, seconds = disk / "filler", draw.uniform(2, 6)
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    time.sleep(seconds)
    filler.unlink()
    return f"full for {seconds:.0f} s"


def stop(pids: Sequence[int], seconds: float) -> None:
    """Stop processes, and let them go on."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def kill(pids: Sequence[int]) -> None:
    """Kill processes, and wait until they are gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(map(is_there, pids)):
        time.sleep(0.1)


def is_there(pid: int) -> bool:
    """Whether a process runs; one that waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(runner: int) -> list[int]:
    """The processes that a runner has started."""
    try:
        told = [
            path.read_text().split() for path in Path(f"/proc/{runner}/task").glob("*/children")
        ]
    except OSError:
        return []
    return [int(child) for children in told for child in children]
