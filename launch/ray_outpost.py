"""A group's processes on one node of a Ray cluster, in the hands of an actor that is theirs.

The actor has the devices from Ray. It starts the runner, or the workers beside it, as processes of
their own: one that hangs can be ended, and what a run leaves behind goes with its process. It is
small itself, and soon there: it does without torch.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from longtake.launch.fleet import Group, Message
from longtake.launch.leftovers import Leftovers
from longtake.launch.local_group import LocalGroup, runner_command, worker_command


class Outpost:
    """An actor; its methods are called from one thread each, a few at a time."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._group: LocalGroup | None = None
        self._workers: list[subprocess.Popen[bytes]] = []

    def open(self, devices: Sequence[str], folder: str, lease: float, log_format: str) -> None:
        """Start the runner; its log goes to `folder`."""
        logs = Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        self._group = LocalGroup(
            tuple(devices),
            runner_command(devices, lease, log_format),
            os.environ,
            logs / f"{devices[0].replace('/', '-')}.log",
            Leftovers(logs / "runners" / socket.gethostname()),
            self._hear,
        )

    def address(self) -> str:
        """Where other nodes find this one."""
        return str(import_module("ray").util.get_node_ip_address())

    def free_port(self) -> int:
        """Where a runner can listen."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return int(listener.getsockname()[1])

    def follow(self, places: Sequence[tuple[str, int]]) -> None:
        """Start workers that take part in a run; those of an earlier run are ended.

        Each is told where to meet, a `Rendezvous` as JSON, and its rank on this node. What they
        have to say, Ray keeps.
        """
        self._end_workers()
        self._workers = [
            subprocess.Popen(
                worker_command(*place),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            for place in places
        ]

    def send(self, message: Message) -> None:
        """Tell the runner something."""
        assert self._group is not None
        self._group.send(message)

    def fetch(self, timeout: float) -> list[Message]:
        """What the runner has said; nothing after `timeout` seconds without a word."""
        said: list[Message] = []
        with suppress(queue.Empty):
            said.append(self._said.get(timeout=timeout))
            while True:
                said.append(self._said.get_nowait())
        return said

    def kill(self) -> None:
        """End all processes at once."""
        if self._group is not None:
            self._group.kill()
        self._end_workers()

    def _hear(self, group: Group, message: Message) -> None:
        self._said.put(message)

    def _end_workers(self) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self._workers.clear()
