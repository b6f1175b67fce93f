"""A run's trace: every worker records, all clocks become rank 0's, and rank 0 writes the file."""

from __future__ import annotations

import base64
import logging
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self

from longtake.parallel.clock import Drift, Offset, measure_offset
from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import Mesh
from longtake.parallel.store import Store
from longtake.scheduler.errors import UserError
from longtake.scheduler.perfetto import Process, write_trace
from longtake.scheduler.timeline import Action, Record, forget
from longtake.scheduler.trace import Recording, Trace
from longtake.scheduler.usage import COLUMNS, usage_rows

PIECE = 250_000  # characters of a recording in one entry of the control store
PATIENCE = 30.0  # seconds for the recordings of workers that have done their share
LAST_WORDS = 3.0  # seconds for those of a run that failed
FOREVER = 7 * 24 * 3600.0  # seconds; who waits so long is told to stop
POLL = 0.02  # seconds between looks

logger = logging.getLogger(__name__)


class Tracing:
    """What one worker of a run records, where that is `wanted`.

    Its time begins when all workers have their weights, and ends with its last task.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.mesh: Mesh | None = None  # once the walk has begun
        self.origin = 0.0  # on rank 0: an instant before anybody's walk
        self._trace: Trace | None = None
        self._stop: float | None = None
        self._giver: Thread | None = None
        self._first = self._last = Offset(0.0, 0.0, 0.0)

    @property
    def record(self) -> Record:
        """For `open_mesh`, `Member` and `Engine`."""
        return self._note if self.wanted else forget

    @contextmanager
    def walk(self, mesh: Mesh) -> Iterator[None]:
        """Around a worker's walk through the schedule; all workers of the mesh enter it at once.

        From then on rank 0 may call for what the others recorded, whatever they hang in.

        Raises:
            CommunicationError: a worker is gone.
        """
        if not self.wanted:
            yield
            return
        self._begin(mesh)
        if mesh.rank > 0:
            self._giver = Thread(target=self._hand_in, args=(mesh,), name="trace", daemon=True)
            self._giver.start()
        try:
            yield
            self._stop = monotonic()
            self._last = self._compare(mesh)
        finally:
            if self._stop is None:
                self._stop = monotonic()

    @contextmanager
    def handing_in(self) -> Iterator[None]:
        """Around all that a worker other than rank 0 does, its walk included: it hands in what it
        recorded when it leaves, be it by an error."""
        try:
            yield
        finally:
            if self.mesh is not None and self._giver is not None:
                with suppress(CommunicationError):  # the giver has met, and told, the same
                    call_for(self.mesh.store, self.mesh.rank)
                self._giver.join(PATIENCE)

    def recording(self) -> Recording:
        """What this worker recorded, on rank 0's clock."""
        assert self._trace is not None
        recording = self._trace.recording(monotonic() if self._stop is None else self._stop)
        return recording.on_clock(Drift(self._first, self._last).shared)

    def collect(self, patience: float) -> Iterator[Recording]:
        """On rank 0: all recordings by rank, those of others once they are handed in, for which it
        waits so many seconds. One after the other, since all of them at once may be large."""
        if self.mesh is None:
            return
        store, deadline = self.mesh.store, monotonic() + patience
        for rank in range(1, self.mesh.degrees.world):
            with suppress(CommunicationError):  # `take` meets, and tells, the same
                call_for(store, rank)
        for rank in range(self.mesh.degrees.world):
            try:
                yield self.recording() if rank == 0 else take(store, rank, deadline)
            except CommunicationError as error:
                logger.warning("the trace is without worker %d: %s", rank, error)

    def _begin(self, mesh: Mesh) -> None:
        mesh.world.barrier()  # it notices who died over its weights sooner than the store does
        world, self.origin = mesh.degrees.world, monotonic()
        self._first = self._last = measure_offset(mesh.store, mesh.rank, world, name="trace/first")
        mesh.world.barrier()
        self._trace = Trace(mesh.rank, socket.gethostname(), monotonic())
        self.mesh = mesh

    def _compare(self, mesh: Mesh) -> Offset:
        """The clocks once more; a video that is done is not lost by it."""
        try:
            mesh.world.barrier()
            return measure_offset(mesh.store, mesh.rank, mesh.degrees.world, name="trace/last")
        except CommunicationError as error:
            logger.warning("the trace does not know how far the clocks drifted: %s", error)
            return self._first

    def _hand_in(self, mesh: Mesh) -> None:
        try:
            mesh.store.get(_call(mesh.rank), FOREVER)
            put(mesh.store, self.recording())
        except CommunicationError as error:
            logger.warning("rank 0 does not take the trace of worker %d: %s", mesh.rank, error)

    def _note(self, action: Action) -> None:
        if self._trace is not None:
            self._trace(action)


@dataclass(frozen=True)
class Collected:
    """What all workers recorded, but the `missing` ones, on one clock; `origin` is an instant of
    it before anybody's walk."""

    recordings: tuple[Recording, ...]
    origin: float
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class Traced:
    """A trace that was written: of which workers, and where their time went."""

    path: Path
    recordings: tuple[Recording, ...]  # without their actions

    def describe(self) -> str:
        """For people: a line per worker."""
        usages = {recording.worker: recording.usage for recording in self.recordings}
        rows = [COLUMNS, *usage_rows(usages)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        late = sum(recording.late for recording in self.recordings)
        if late:
            lines.append(f"{late} actions lasted so long that their beginning is not counted")
        return "\n".join([f"{self.path} opens at https://ui.perfetto.dev", *lines])

    def facts(self) -> dict[str, Any]:
        """For programs: seconds by worker."""
        return {"path": str(self.path), "workers": self.usage()}

    def usage(self) -> dict[str, dict[str, Any]]:
        """By worker, as text for JSON's sake, the seconds of its usage."""
        return {
            str(recording.worker): {
                "host": recording.host,
                "wall": round(recording.usage.wall, 6),
                **{part: round(seconds, 6) for part, seconds in asdict(recording.usage).items()},
            }
            for recording in self.recordings
        }


class TraceFile:
    """Rank 0's side of a trace: its own recording, those of the others, the file.

    As a context, left while the control store is there, it writes what there is of the trace of a
    run that fails.

    Attributes:
        handed: what another process has collected, where rank 0 is not this one.
    """

    def __init__(self, path: Path | None, overwrite: bool = False) -> None:
        """`path` is None where no trace is wanted.

        Raises:
            UserError: something is there that may not be replaced, or it can't be written.
        """
        if path is not None:
            _check(path, overwrite)
        self._path, self._over = path, False
        self.own = Tracing(path is not None)
        self.handed: Collected | None = None
        self.traced: Traced | None = None

    def finish(self, patience: float = PATIENCE) -> Traced | None:
        """Collect what the others handed in, and write; None where there is nothing to write.

        Raises:
            UserError: the file can't be written.
        """
        self._over = True
        if self._path is None or (self.handed is None and self.own.mesh is None):
            return None
        kept: list[Recording] = []
        if self.handed is None:
            recordings, origin = self.own.collect(patience), self.own.origin
        else:
            recordings, origin = iter(self.handed.recordings), self.handed.origin
            for rank in self.handed.missing:
                logger.warning("the trace is without worker %d", rank)
        write_trace(self._path, _processes(recordings, kept), origin)
        self.traced = Traced(self._path, tuple(kept))
        return self.traced

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or self._over:
            return
        try:
            if self.finish(LAST_WORDS) is not None:
                logger.warning("%s tells what was done before the run ended", self._path)
        except (UserError, CommunicationError) as trouble:  # what ended the run matters more
            logger.warning("%s", trouble)


def _processes(recordings: Iterator[Recording], kept: list[Recording]) -> Iterator[Process]:
    """For the file; `kept` gets all but the actions."""
    for recording in recordings:
        kept.append(replace(recording, actions=()))
        yield Process(recording.worker, recording.host, recording.actions, recording.dropped)


def call_for(store: Store, rank: int) -> None:
    """Let a worker `put` its recording now.

    Raises:
        CommunicationError: who keeps the store is gone.
    """
    store.set(_call(rank), "")


def put(store: Store, recording: Recording) -> None:
    """Leave a recording in the control store, in pieces that don't hold up anybody else.

    Raises:
        CommunicationError: who keeps the store is gone.
    """
    packed = base64.b85encode(zlib.compress(recording.to_json().encode())).decode()
    pieces = [packed[at : at + PIECE] for at in range(0, len(packed), PIECE)]
    for at, piece in enumerate(pieces):
        store.set(_piece(recording.worker, at), piece)
    store.set(_count(recording.worker), str(len(pieces)))


def take(store: Store, rank: int, deadline: float) -> Recording:
    """Fetch what a worker has `put`, once it is there, and free the store of it.

    Raises:
        CommunicationError: it has not come by the `deadline`, in seconds of `time.monotonic`.
    """
    while not store.has(_count(rank)):
        if monotonic() > deadline:
            raise CommunicationError("collecting the trace", 0, (rank,), "it did not hand it in")
        sleep(POLL)
    keys = [_piece(rank, at) for at in range(int(store.get(_count(rank))))]
    packed = "".join(store.get(key) for key in keys)
    for key in keys:
        store.set(key, "")
    return Recording.from_json(zlib.decompress(base64.b85decode(packed)).decode())


def _call(rank: int) -> str:
    return f"trace/{rank}/call"


def _count(rank: int) -> str:
    return f"trace/{rank}/pieces"


def _piece(rank: int, at: int) -> str:
    return f"trace/{rank}/{at}"


def _check(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise UserError(f"the trace can't be written to {path}: it is a folder")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already; replace it with --force, or name another trace")
    if not path.parent.is_dir():
        raise UserError(f"the trace can't be written to {path}: {path.parent} is no folder")
