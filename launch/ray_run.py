"""A run that a Ray cluster generates: the engine is in rank 0's actor, the files are here."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from longtake.launch.crew import WorkerLost
from longtake.launch.draft import Draft
from longtake.launch.engine import OnProgress
from longtake.launch.order import Order
from longtake.launch.places import Places
from longtake.launch.ray_cluster import (
    RayWorkers,
    brief,
    cluster_hosts,
    import_ray,
    ray_workers,
)
from longtake.launch.ray_worker import (
    Block,
    Ended,
    Failed,
    Frames,
    Item,
    Parcel,
    State,
    Wanted,
)
from longtake.launch.run import LoadModel, Result, Run
from longtake.launch.run_journal import replay
from longtake.launch.surroundings import Hosts, Surroundings
from longtake.launch.tracing import TraceFile
from longtake.parallel.beacon import EVERY, Sign
from longtake.runtime.engine import FrameSink, Outcome
from longtake.runtime.journal import Journal
from longtake.runtime.progress import Progress
from longtake.scheduler.errors import UserError

JUDGEMENT = 10.0  # seconds beyond the timeout for rank 0 to find out whom it has lost


class RayRun(Run):
    """A run whose workers are on the cluster that this process has joined."""

    @staticmethod
    def hosts(around: Surroundings | None, workers: int | None = None) -> Hosts:
        """See `Run`."""
        return cluster_hosts(workers or 1)

    @classmethod
    def new(
        cls,
        draft: Draft,
        places: Places,
        around: Surroundings | None = None,
        trace: Path | None = None,
        epoch: int | None = None,
    ) -> Run:
        """As `Run.new`; refuses a live run."""
        if draft.settings.live:
            raise UserError("a live run can't be had on a Ray cluster; leave out live")
        return super().new(draft, places, around, trace, epoch)

    def _execute(self, end: ExitStack, on_progress: OnProgress, load: LoadModel) -> Result:
        workers = end.enter_context(ray_workers(self.draft))  # without room it leaves no trace
        journal, files = self._open(end)
        schedule = self.schedule
        replay(journal, schedule)
        order = Order(self.draft, torch.get_num_threads(), trace=self.trace.own.wanted)
        end.enter_context(self.trace)
        self._engine = RayEngine(workers, order, files, journal, on_progress, self.trace)
        return self._conclude(self._engine.run(), schedule, journal, files)


class RayEngine:
    """Drives one run on a cluster. What goes wrong there is told here, within the timeout."""

    def __init__(
        self,
        workers: RayWorkers,
        order: Order,
        sink: FrameSink,
        journal: Journal,
        on_progress: OnProgress,
        trace: TraceFile,
    ) -> None:
        """`trace` is handed what rank 0 has collected."""
        self._workers, self._order, self._on_progress = workers, order, on_progress
        self._trace = trace
        self._sink, self._journal = sink, journal
        self._timeout = order.draft.settings.parallel.timeout
        self._ray, self._boss = import_ray(), workers.actors[0]
        self._signs: dict[int, Sign] = {}
        self._last: Progress | None = None
        self._stopping = False
        self._failure: UserError | WorkerLost | None = None
        self._deadline = 0.0

    def stop(self) -> None:
        """End after the block at work; callable from a signal handler.

        Raises:
            KeyboardInterrupt: no block is at work yet, so there is nothing to wait for.
        """
        if self._last is None:
            raise KeyboardInterrupt
        self._stopping = True

    def run(self) -> Outcome:
        """Do the whole run; returns when every frame made is in the sink.

        Raises:
            UserError: a worker needs more memory than there is, or the disk refuses.
            WorkerLost: a worker died, hangs, or can't be reached; what was finished is kept.
        """
        parts = self._start()
        fetch, last, told = self._fetch(), False, False
        ended: Ended | None = None
        self._heard()
        while time.monotonic() < self._deadline:
            ready, _ = self._ray.wait([*parts, *([] if last else [fetch])], timeout=EVERY)
            for reference in ready:
                if reference in parts:
                    ended = self._ended(parts.pop(reference), reference) or ended
                    continue
                parcel: Parcel = self._get(0, reference)
                last = parcel.last
                if not last:
                    fetch = self._fetch()  # it travels while this one is written
                self._unpack(parcel)
            if last and ended is not None:
                return ended.outcome()
            if last and self._failure is not None:
                break
            if self._stopping and not told:
                self._boss.stop.remote()
                told = True
        self._hear_out(parts)
        raise self._failure or self._lost(0, f"has not answered for {self._timeout:g} s")

    def _start(self) -> dict[Any, int]:
        """Every rank's part."""
        (leader, *followers), (first, *others) = self._workers.actors, self._workers.arounds
        kept, events = self._journal.blocks(), self._journal.events()
        known = self._journal.read_state()
        state = None if known is None else State(*known)
        parts = {leader.lead.remote(first, self._order.to_json(), kept, state, events): 0}
        for follower, around in zip(followers, others, strict=True):
            parts[follower.work.remote(around)] = around.rank
        return parts

    def _hear_out(self, parts: dict[Any, int]) -> None:
        """A worker that failed by a mistake may be about to say so, while the others miss it."""
        ready: list[Any] = []
        if parts:
            ready, _ = self._ray.wait([*parts], num_returns=len(parts), timeout=EVERY)
        for reference in ready:
            self._ended(parts[reference], reference)

    def _fetch(self) -> Any:
        return self._boss.fetch.remote(EVERY)

    def _get(self, rank: int, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise self._lost(rank, f"was lost, {brief(error)}") from error

    def _heard(self) -> None:
        if self._failure is None:
            self._deadline = time.monotonic() + self._timeout

    def _unpack(self, parcel: Parcel) -> None:
        self._signs |= {rank: sign for rank, sign in parcel.signs.items() if sign is not None}
        for item in parcel.items:
            self._take(item)
        self._heard()  # now, for a slow disk is no silence of rank 0

    def _take(self, item: Item) -> None:
        match item:
            case Frames(pixels):
                self._sink.write(pixels)
            case Block(number, latents):
                self._journal.write(number, latents)
            case State(tick, tensors):
                self._journal.write_state(tick, dict(tensors))
            case Wanted(number):
                self._boss.answer.remote(self._journal.read(number))
            case Progress():
                self._last = item
                self._on_progress(item)

    def _ended(self, rank: int, reference: Any) -> Ended | None:
        """How a worker's part ended. A failure is told when rank 0 has handed over all it has."""
        try:
            result = self._get(rank, reference)
        except WorkerLost as error:
            if rank == 0:
                raise
            self._fail(error)
            return None
        if rank == 0:
            self._trace.handed = result.collected
        if isinstance(result, Failed):
            if result.mistake:
                self._fail(UserError(result.text))
            elif rank == 0:
                self._fail(WorkerLost(result.text))
            # What the others say of whom they lost is hearsay: rank 0 will know soon.
        return result if isinstance(result, Ended) else None

    def _fail(self, failure: UserError | WorkerLost) -> None:
        if self._failure is None:
            self._deadline = time.monotonic() + self._timeout + JUDGEMENT
        if self._failure is None or isinstance(failure, UserError):
            self._failure = failure

    def _lost(self, rank: int, how: str) -> WorkerLost:
        sign, last = self._signs.get(rank), self._last
        action = "starting" if sign is None else sign.action
        if rank == 0 and last is not None:  # its signs of life don't tell, but its news does
            action = f"{last.stage} of block {last.block}"
        return WorkerLost(f"{self._workers.name(rank)} {how}; it was last at: {action}")
