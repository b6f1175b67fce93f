"""Two hosts on this machine: a network namespace each, a host name each, one link between them.

Tests and `benchmarks/survival.py` make a Ray cluster of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

STORE = 100_000_000  # bytes of objects that Ray keeps on a host; Longtake keeps none there
END = """hostname "$1" && shift && exec "$@" """  # run by a shell with a host name of its own


class NoHostsHere(Exception):
    """This machine makes no network namespaces for us; the message says why."""


@dataclass(frozen=True)
class Host:
    """`name` is that of the namespace and of the host, `link` its end of the link."""

    name: str
    address: str
    link: str

    def command(self, *words: str | Path) -> list[str]:
        """A command as it is run on this host."""
        there = ("ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", END, "sh")
        return [*there, self.name, *map(str, words)]

    def run(self, *words: str | Path, environment: Mapping[str, str]) -> str:
        """The output of a command that must go well."""
        done = subprocess.run(
            self.command(*words), env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def start_ray(self, *how: str | Path, cpus: int, environment: Mapping[str, str]) -> None:
        """Make this host a node of a Ray cluster; `how` are words of `ray start`."""
        size = (f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={STORE}")
        self.run(
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *how, *size),
            *("--node-ip-address", self.address, "--disable-usage-stats"),
            environment=environment,
        )

    def cut(self) -> None:
        """Cut the link, without a word to either end's processes."""
        ip("-n", self.name, "link", "set", self.link, "down")

    def mend(self) -> None:
        """The inverse of `cut`."""
        ip("-n", self.name, "link", "set", self.link, "up")
        ip("-n", self.name, "route", "replace", "default", "dev", self.link)

    def processes(self, words: str = "") -> list[int]:
        """The ids of this host's processes whose command has these words in it."""
        found = []
        for pid in map(int, ip("netns", "pids", self.name).split()):
            with suppress(OSError):  # it has just ended
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                if words in command.decode(errors="replace"):
                    found.append(pid)
        return found

    def end_processes(self, patience: float = 10.0) -> None:
        """End all of this host's processes, those kindly that listen within `patience` seconds."""
        end = time.monotonic() + patience
        self._signal(signal.SIGTERM)
        while self.processes() and time.monotonic() < end:
            time.sleep(0.1)
        self.kill_processes()

    def kill_processes(self) -> None:
        """End all of this host's processes at once, as if its power failed."""
        while self.processes():
            self._signal(signal.SIGKILL)
            time.sleep(0.1)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def ray_environment() -> dict[str, str]:
    """For a Ray of our own: nothing of another one, and workers that other work does not starve."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    own = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    return {**known, **own}


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that see nothing but each other; raises `NoHostsHere`."""
    if os.geteuid() != 0:
        raise NoHostsHere("network namespaces need root")
    absent = [name for name in ("ip", "unshare", "hostname") if shutil.which(name) is None]
    if absent:
        raise NoHostsHere(f"network namespaces need the programs {', '.join(absent)}")
    number = os.getpid()
    hosts = tuple(Host(f"lt{number}{end}", f"10.77.0.{at}", f"v{number}{end}")
                  for at, end in ((1, "a"), (2, "b")))  # fmt: skip
    made: list[Host] = []
    try:
        for host in hosts:
            try:
                ip("netns", "add", host.name)
            except subprocess.CalledProcessError as error:
                reason = f"this system makes no network namespaces: {error.stderr.strip()}"
                raise NoHostsHere(reason) from error
            made.append(host)
            ip("-n", host.name, "link", "set", "lo", "up")
        first, second = hosts
        ends = ("name", second.link, "netns", second.name)
        ip("-n", first.name, "link", "add", first.link, "type", "veth", "peer", *ends)
        for host in hosts:
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.link)
            host.mend()
        yield first, second
    finally:
        for host in made:
            host.end_processes()
            ip("netns", "delete", host.name)


def ip(*words: str) -> str:
    """The output of a command of iproute2."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
