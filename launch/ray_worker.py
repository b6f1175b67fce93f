"""The process of one worker of a Ray cluster, and what rank 0 hands to the driver.

Only the driver has files: finished blocks, frames and news wait in rank 0's outbox until the driver
fetches them, and kept blocks come from the driver on request.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtake.launch.children import Children
from longtake.launch.crew import WorkerLost, begin, crew, meeting_of
from longtake.launch.engine import load_first_share, make_engine
from longtake.launch.follow import follow
from longtake.launch.loads import Loads
from longtake.launch.order import Order
from longtake.launch.ray_cluster import import_ray
from longtake.launch.surroundings import Surroundings
from longtake.launch.tracing import LAST_WORDS, PATIENCE, Collected, Tracing
from longtake.parallel.beacon import EVERY, Sign, look
from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import Mesh
from longtake.runtime.engine import Engine, Outcome
from longtake.runtime.progress import Progress
from longtake.scheduler.errors import UserError
from longtake.scheduler.timeline import Timeline

DEPTH = 4  # pieces that wait to be fetched, at most
NO_LOGS = Path(os.devnull)  # Ray keeps what its workers say
EXIT_LOST = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seat:
    """Where a worker sits."""

    host: str
    address: str
    pid: int


@dataclass(frozen=True)
class Frames:
    """The next frames, (n, H, W, 3) uint8."""

    pixels: np.ndarray


@dataclass(frozen=True)
class Block:
    """A finished block."""

    number: int
    latents: Tensor


@dataclass(frozen=True)
class Wanted:
    """A kept block that rank 0 waits for."""

    number: int


@dataclass(frozen=True)
class State:
    """What it takes to go on after the launch at `tick`."""

    tick: int
    tensors: Mapping[str, Tensor]


Item = Frames | Block | Wanted | State | Progress


@dataclass(frozen=True)
class Parcel:
    """What the driver fetches: items in order, and each worker's last sign of life."""

    items: Sequence[Item]
    signs: Mapping[int, Sign | None]
    last: bool


@dataclass(frozen=True)
class Failed:
    """Why a worker gave up. `mistake`: it is the user's to mend; `collected`: rank 0's trace."""

    text: str
    mistake: bool
    collected: Collected | None = None


@dataclass(frozen=True)
class Ended:
    """An outcome without what can't travel: a lock, and this host's clock; and the trace."""

    facts: Mapping[str, Any]
    elapsed: float
    seconds: Mapping[str, float]
    counts: Mapping[str, int]
    collected: Collected | None = None

    @classmethod
    def of(cls, outcome: Outcome, collected: Collected | None = None) -> Ended:
        """Pack."""
        facts = {f.name: getattr(outcome, f.name) for f in fields(outcome) if f.name != "timeline"}
        timeline = outcome.timeline
        seconds, counts = dict(timeline.seconds), dict(timeline.counts)
        return cls(facts, timeline.elapsed, seconds, counts, collected)

    def outcome(self) -> Outcome:
        """Unpack."""
        origin = time.monotonic() - self.elapsed
        timeline = Timeline(origin, dict(self.seconds), dict(self.counts))
        return Outcome(**self.facts, timeline=timeline)


class Outbox:
    """Items in order until they are fetched. Whoever puts one in waits while `depth` are there."""

    def __init__(self, depth: int = DEPTH) -> None:
        self._items: list[Item] = []
        self._depth, self._closed = depth, False
        self._changed = threading.Condition()

    def put(self, item: Frames | Block | Wanted | State) -> None:
        """Add an item as soon as there is room."""
        with self._changed:
            self._changed.wait_for(self._has_room)
            self._items.append(item)
            self._changed.notify_all()

    def tell(self, progress: Progress) -> None:
        """Add news, which takes no room: it replaces news that nothing has followed yet."""
        with self._changed:
            if self._items and isinstance(self._items[-1], Progress):
                self._items.pop()
            self._items.append(progress)
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing will follow."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, timeout: float) -> tuple[list[Item], bool]:
        """All items, as soon as there is one, and whether they are the last; none in vain."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout)
            items, self._items = self._items, []
            self._changed.notify_all()
            return items, self._closed

    def _has_room(self) -> bool:
        return sum(not isinstance(item, Progress) for item in self._items) < self._depth


@dataclass
class DriverFiles:
    """The driver's journal as rank 0's engine sees it; `kept` are the blocks that it has, `state`
    what it says of those in the making."""

    outbox: Outbox
    kept: Set[int] = frozenset()
    state: State | None = None
    _answers: queue.Queue[Tensor | None] = field(default_factory=queue.Queue)
    _last: tuple[int, Tensor | None] = (-1, None)

    def write(self, block: int, latents: Tensor) -> None:
        """Hand over a finished block; the frames that are made of it follow it."""
        self.outbox.put(Block(block, latents.detach().cpu()))

    def read(self, block: int) -> Tensor | None:
        """Ask the driver for a kept block; None if it must be made."""
        if block not in self.kept:
            return None
        if self._last[0] != block:
            self.outbox.put(Wanted(block))
            self._last = (block, self._answers.get())
        return self._last[1]

    def write_state(self, tick: int, tensors: dict[str, Tensor]) -> None:
        """Hand over the state of a run after the launch at `tick`."""
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        self.outbox.put(State(tick, kept))

    def read_state(self) -> tuple[int, dict[str, Tensor]] | None:
        """What the driver had at the start."""
        return None if self.state is None else (self.state.tick, dict(self.state.tensors))

    def answer(self, latents: Tensor | None) -> None:
        """The driver's answer to what was asked last."""
        self._answers.put(latents)


@dataclass(frozen=True)
class FrameOutbox:
    """A `FrameSink` whose frames the driver fetches."""

    outbox: Outbox

    def write(self, frames: np.ndarray) -> None:
        """Hand over frames, (n, H, W, 3) uint8."""
        self.outbox.put(Frames(frames))


class Follower:
    """The actor of a rank other than 0; its methods run in the main thread."""

    def seat(self) -> Seat:
        """Where this worker sits."""
        return _seat()

    def work(self, around: Surroundings) -> Failed | None:
        """Take part in rank 0's run."""
        try:
            follow(meeting_of(around), 0, _give_up)  # Ray shows it a single GPU
        except CommunicationError as error:
            return Failed(str(error), mistake=False)
        except UserError as error:
            return _mistake(error)
        return None


class Leader:
    """The actor of rank 0. The other methods are called while `lead` is at work."""

    def __init__(self) -> None:
        self._outbox = Outbox()
        self._files = DriverFiles(self._outbox)
        self._mesh: Mesh | None = None
        self._engine: Engine | None = None
        self._stopped = False
        self._signs: Mapping[int, Sign | None] = {}
        self._looked = 0.0
        self._collected: Collected | None = None

    def seat(self) -> Seat:
        """Where this worker sits."""
        return _seat()

    def free_port(self) -> int:
        """Where it can listen."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return int(listener.getsockname()[1])

    def lead(
        self,
        around: Surroundings,
        asked: str,
        kept: Set[int],
        state: State | None,
        events: Sequence[Mapping[str, Any]],
    ) -> Ended | Failed:
        """Do the run with all workers: `asked` for by an `Order`, and with blocks `kept` and
        `events` recorded in the driver's journal."""
        self._files.kept, self._files.state = kept, state
        try:
            order = Order.from_json(asked)
            if order.draft.device.type == "cpu":
                torch.set_num_threads(order.threads)
            tracing = Tracing(order.trace)
            with crew(order, around, Children(NO_LOGS), Loads(tracing.record)) as mesh:
                self._mesh = mesh
                with self._collecting(tracing):
                    outcome = self._generate(order, mesh, events, tracing)
                return Ended.of(outcome, self._collected)
        except WorkerLost as error:
            return Failed(str(error), mistake=False, collected=self._collected)
        except UserError as error:
            return replace(_mistake(error), collected=self._collected)
        finally:
            self._outbox.close()

    @contextmanager
    def _collecting(self, tracing: Tracing) -> Iterator[None]:
        """The trace of all workers, which the driver gets with the result, whatever that is."""
        patience = LAST_WORDS
        try:
            yield
            patience = PATIENCE
        finally:
            recordings = tuple(tracing.collect(patience))
            if recordings and self._mesh is not None:
                ranks = {recording.worker for recording in recordings}
                missing = tuple(r for r in range(self._mesh.world.size) if r not in ranks)
                self._collected = Collected(recordings, tracing.origin, missing)

    def _generate(
        self, order: Order, mesh: Mesh, events: Sequence[Mapping[str, Any]], tracing: Tracing
    ) -> Outcome:
        draft = order.draft
        model = load_first_share(draft)
        begin(mesh, draft.settings.parallel.timeout)
        schedule = draft.schedule()
        for event in events:
            schedule.switch(event["text"], block=event["block"])
        sink = FrameOutbox(self._outbox)
        news, record = self._outbox.tell, tracing.record
        engine = make_engine(draft, model, schedule, sink, self._files, news, mesh, record)
        self._engine = engine
        if self._stopped:
            engine.stop()
        return engine.run(tracing.walk(mesh))

    def fetch(self, timeout: float) -> Parcel:
        """What waits for the driver; empty after `timeout` seconds without any."""
        items, last = self._outbox.take(timeout)
        if self._mesh is not None and time.monotonic() - self._looked > EVERY:
            self._signs = look(self._mesh.store, range(self._mesh.world.size))
            self._looked = time.monotonic()
        return Parcel(items, self._signs, last)

    def answer(self, latents: Tensor | None) -> None:
        """What the driver keeps of the block that was wanted."""
        self._files.answer(latents)

    def stop(self) -> None:
        """End after the block at work."""
        self._stopped = True
        if self._engine is not None:
            self._engine.stop()


def _seat() -> Seat:
    address = import_ray().util.get_node_ip_address()
    return Seat(socket.gethostname(), address, os.getpid())


def _mistake(error: UserError) -> Failed:
    return Failed(f"on host {socket.gethostname()}: {error}", mistake=True)


def _give_up(reason: str) -> None:
    logger.error("%s", reason)
    os._exit(EXIT_LOST)
