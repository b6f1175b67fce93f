"""`workers`: real processes that run a function of a test, as the ranks of a world."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

from longtake.parallel.mesh import Rendezvous

MOST = 4  # workers; each is a process with one thread for torch
GRACE = 2.0  # seconds for the others to tell what they saw, once a rank has failed


@dataclass
class Slot:
    """A process of the pool, and the pipe to it."""

    process: BaseProcess
    pipe: Connection


class Workers:
    """A pool of processes that live as long as the tests, since starting one takes a while.

    They are forked from a server that has imported torch and nothing else, so a new one, after a
    test that killed its predecessor, is there at once.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["torch", "longtake.runtime.member", "longtake.runtime.parallel_vae"]
        )
        self._slots: list[Slot] = []
        # Below the ports that the system hands out by itself, apart from other test processes.
        self._port = 10_000 + os.getpid() * 97 % 20_000

    def run(
        self,
        world: int,
        function: Callable[..., Any],
        *args: Any,
        timeout: float = 20.0,
        may_die: Collection[int] = (),
    ) -> list[Any]:
        """Run `function(rendezvous, *args)` in `world` processes, each with its own rank.

        The test fails, with the tracebacks of all ranks that have one, when a rank raises, dies or
        is not done in time. Then the processes are replaced, so the next test starts afresh.

        Args:
            world: how many ranks, 4 at most.
            function: at the top level of a test module.
            args: for the function; pickled, as is what it returns.
            timeout: seconds for all ranks; also that of the rendezvous' operations, halved, so
                that whoever waits for a lost peer says so before the time is over.
            may_die: ranks that are killed on purpose; their result is None.

        Returns:
            What each rank returned.
        """
        if not 1 <= world <= MOST:
            raise ValueError(f"the pool has 1 to {MOST} workers, not {world}")
        port = self._free_port()
        for rank, slot in enumerate(self._ready(world)):
            meeting = Rendezvous("127.0.0.1", port, rank, world, timeout / 2)
            slot.pipe.send_bytes(pickle.dumps((function, meeting, *args)))
        results, failures = self._collect(world, timeout, may_die)
        if failures:
            self._replace(world)
            told = [f"--- rank {rank}:\n{failures[rank]}" for rank in sorted(failures)]
            pytest.fail("\n".join(told), pytrace=False)
        return [results[rank] for rank in range(world)]

    def close(self) -> None:
        """End all processes."""
        self._replace(len(self._slots))

    def _collect(
        self, world: int, timeout: float, may_die: Collection[int]
    ) -> tuple[dict[int, Any], dict[int, str]]:
        """Results and failures by rank."""
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        deadline = time.monotonic() + timeout
        missing = set(range(world))
        while missing and (left := deadline - time.monotonic()) > 0:
            pipes = {self._slots[rank].pipe: rank for rank in missing}
            for pipe in wait(list(pipes), left):
                rank = pipes[pipe]  # type: ignore[index]  # only pipes were waited for
                missing.discard(rank)
                try:
                    done, result = pickle.loads(self._slots[rank].pipe.recv_bytes())
                except (EOFError, ConnectionResetError):
                    self._slots[rank].process.join(GRACE)
                    code = self._slots[rank].process.exitcode
                    results[rank] = None
                    if rank not in may_die:
                        failures[rank] = f"died with exit code {code}"
                else:
                    (results if done else failures)[rank] = result
                if failures:
                    deadline = min(deadline, time.monotonic() + GRACE)
        first = "after another rank failed" if failures else f"within {timeout:g} s"
        return results, failures | {rank: f"not done {first}" for rank in missing}

    def _ready(self, world: int) -> list[Slot]:
        """The first `world` processes, started where they are missing or dead."""
        for index in range(world):
            if index < len(self._slots) and self._slots[index].process.is_alive():
                continue
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._slots[index : index + 1] = [Slot(process, ours)]
        return self._slots[:world]

    def _replace(self, world: int) -> None:
        """Kill the first `world` processes; `_ready` starts others."""
        for slot in self._slots[:world]:
            slot.process.kill()
        for slot in self._slots[:world]:
            slot.process.join()
            slot.pipe.close()

    def _free_port(self) -> int:
        while True:
            self._port += 1
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", self._port))
                except OSError:
                    continue
                return self._port


def serve(pipe: Connection) -> None:
    """What a process of the pool does: run functions until the pipe closes."""
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            packed = pipe.recv_bytes()
        except EOFError:
            return
        try:
            function, *args = pickle.loads(packed)
            answer = (True, function(*args))
            reply = pickle.dumps(answer)
        except Exception:  # noqa: BLE001  # whatever it is, the test is to show it
            reply = pickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(reply)


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """Processes to run ranks in; see `Workers.run`."""
    pool = Workers()
    yield pool
    pool.close()
