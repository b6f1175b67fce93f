"""The workers of a run as rank 0 sees them: started here, or by torchrun or SLURM around us."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from longtake.launch.order import ORDER, Order
from longtake.launch.surroundings import Surroundings
from longtake.parallel.beacon import find_lost
from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import Mesh, Rendezvous, connect, open_mesh
from longtake.parallel.store import Store
from longtake.scheduler.timeline import Record, forget

LOCALHOST = "127.0.0.1"
MEETING_SECONDS = 300.0  # for all workers of a cluster to be up
GRACE = 10.0  # seconds for workers to end by themselves


class WorkerLost(RuntimeError):
    """A worker died or hangs; the message says which, where, and what it did last."""


@contextmanager
def crew(
    order: Order,
    around: Surroundings | None,
    logs: Path,
    record: Record = forget,
) -> Iterator[Mesh]:
    """Start or meet the other workers of a run, tell them what to do, and connect with them.

    Without `around` they are processes of this host, whose output goes to `logs`. When the block
    is left, so have they.

    Raises:
        WorkerLost: instead of the `CommunicationError` that it was noticed by.
    """
    draft = order.draft
    timeout = draft.settings.parallel.timeout
    with ExitStack() as end:
        if around is None:
            rendezvous = Rendezvous(LOCALHOST, _free_port(), 0, draft.degrees.world, timeout)
        else:
            rendezvous = meeting_of(around, timeout)
        store = connect(rendezvous)
        children = _Children(logs)
        if around is None:
            end.callback(children.end)
            children.start(rendezvous)
        store.set(ORDER, order.to_json())
        try:
            mesh = open_mesh(rendezvous, draft.degrees, draft.device, record, store=store)
            end.callback(mesh.close)
            yield mesh
        except CommunicationError as error:
            raise WorkerLost(_explain(store, rendezvous, children, error)) from error


def _explain(
    store: Store, rendezvous: Rendezvous, children: _Children, error: CommunicationError
) -> str:
    lost = find_lost(store, range(1, rendezvous.world))
    return "; ".join([lost, *children.deaths(), f"noticed at {error.action}"])


@dataclass
class _Children:
    """Processes of this host."""

    logs: Path
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, at: Rendezvous) -> None:
        """Start all ranks but 0. They are no children of the terminal, so Ctrl-C is ours alone."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for rank in range(1, at.world):
            places = [at.address, at.port, rank, at.world, at.timeout]
            with self.log(rank).open("wb") as log:
                self.processes[rank] = subprocess.Popen(
                    [sys.executable, "-m", "longtake.launch.worker", *map(str, places)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def log(self, rank: int) -> Path:
        """Where a worker's output goes."""
        return self.logs / f"worker-{rank}.log"

    def deaths(self) -> list[str]:
        """What is known of those that ended."""
        told = []
        for rank, process in self.processes.items():
            code = process.poll()
            if code:
                why = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                told.append(f"process {process.pid} of worker {rank} {why}, see {self.log(rank)}")
        return told

    def end(self) -> None:
        """Wait a little for the processes to end, then kill those that don't."""
        for process in self.processes.values():
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def meeting_of(around: Surroundings, timeout: float = MEETING_SECONDS) -> Rendezvous:
    """Where the workers of a world that somebody else started meet."""
    return Rendezvous(
        around.address, around.port, around.rank, around.world, timeout, listen=around.listen
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOCALHOST, 0))
        return int(listener.getsockname()[1])
