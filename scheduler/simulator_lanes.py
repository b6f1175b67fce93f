"""The processes of a simulation: lanes that walk their parts, channels between them, the decoder.

A lane is the workers that share every task; they keep step, so one clock stands for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from longtake.scheduler.plan import Plan
from longtake.scheduler.task import Edge, Kind, Payload, Task
from longtake.scheduler.timeline import Action, Activity, Record, forget

DEPTH = 2  # blocks that wait for the decoder at most; see `runtime.decoding`
IN_FLIGHT = 2  # messages that a sender does not wait for; see `parallel.link`


@dataclass(frozen=True)
class Effort:
    """What a part takes of its lane.

    Attributes:
        compute: seconds of its slowest worker.
        exchange: seconds in which all of its workers stand still while bytes travel.
        beside: seconds of bytes that travel while it computes; what is left of them is waited for.
        bytes: what all of its workers send to each other.
    """

    compute: float
    exchange: float = 0.0
    beside: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class Travel:
    """What a message between two lanes takes.

    Attributes:
        latency: seconds until its first byte is there.
        busy: seconds in which it holds every one of the `ports` that it passes.
        ports: whatever other messages pass too, and only one at a time.
        bytes: from all workers of the lane together.
    """

    latency: float
    busy: float
    ports: tuple[str, ...] = ()
    bytes: int = 0


class Efforts(Protocol):
    """What parts and messages take."""

    def effort(self, part: Task) -> Effort:
        """Of a part on its lane; of a DECODE on rank 0."""
        ...

    def travel(self, edge: Edge, part: Task) -> Travel:
        """Of an edge that this part sends."""
        ...


class Channel:
    """Messages from one lane to another, in order. Each leaves once it is sent and awaited."""

    def __init__(self, ports: dict[str, float]) -> None:
        self._ports = ports  # until when each is held; shared with all other channels
        self._sent: deque[tuple[float, Travel]] = deque()
        self._awaited: deque[float] = deque()
        self._left: list[float] = []  # of the messages that are on their way or there
        self._there: list[float] = []
        self._sent_at: list[float] = []
        self.on_left: Callable[[], None] = lambda: None
        self.sends = self.receives = 0

    def send(self, now: float, travel: Travel) -> int:
        """Hand over the next message; returns its number."""
        self._sent.append((now, travel))
        self._start()
        self.sends += 1
        return self.sends - 1

    def expect(self, now: float) -> int:
        """Make room for the next message; returns its number."""
        self._awaited.append(now)
        self._start()
        self.receives += 1
        return self.receives - 1

    def left(self, number: int) -> float | None:
        """When the sender's buffer is free again; None while that isn't settled."""
        return self._left[number] if number < len(self._left) else None

    def there(self, number: int) -> float | None:
        """When a message has arrived; None while that isn't settled."""
        return self._there[number] if number < len(self._there) else None

    def sent_at(self, number: int) -> float:
        """When a message, which has left, was handed over."""
        return self._sent_at[number]

    def _start(self) -> None:
        if not self._sent or not self._awaited:
            return
        (sent, travel), awaited = self._sent.popleft(), self._awaited.popleft()
        start = max(sent, awaited)
        for port in travel.ports:
            start = max(start, self._ports.get(port, 0.0))
        left = start + travel.busy
        for port in travel.ports:
            self._ports[port] = left
        self._left.append(left)
        self._there.append(left + travel.latency)
        self._sent_at.append(sent)
        self.on_left()


class Decoder:
    """The lane that decodes beside rank 0, in order.

    `shared` is the part of its work by which it slows rank 0 down, and rank 0 it, while both are at
    work: 1 on one GPU, 0 where each has processors of its own.
    """

    def __init__(self, shared: float, decoded: Callable[[int, bool, float, float], None]) -> None:
        """`decoded` hears of a block, whether that was its last piece, and start and stop."""
        self._slower, self._decoded = 1.0 + shared, decoded
        self._pieces: deque[tuple[int, float, bool]] = deque()  # block, seconds, last
        self._left = 0.0  # of the first piece, in seconds of its own
        self._began = 0.0
        self._now = 0.0
        self.worked = 0.0

    def put(self, now: float, block: int, pieces: Sequence[float]) -> float:
        """Queue a block; returns when the one that brings it may go on."""
        now = self.advance(now)
        for index, seconds in enumerate(pieces):
            if not self._pieces:
                self._left, self._began = seconds, now
            self._pieces.append((block, seconds, index == len(pieces) - 1))
            self.worked += seconds
        while self._waiting > DEPTH:
            now = self._run_alone()
        return now

    def advance(self, until: float) -> float:
        """Decode alone up to an instant, which is returned."""
        while self._pieces and self._now + self._left <= until:
            self._run_alone()
        if self._pieces:
            self._left -= until - self._now
        self._now = until
        return until

    def beside(self, start: float, work: float) -> float:
        """When computing that begins at `start` and alone takes `work` is over."""
        self.advance(start)
        now = start
        while self._pieces and work > 0:
            both = min(self._left, work)
            now += both * self._slower
            self._left -= both
            work -= both
            self._now = now
            if self._left <= 0:
                self._finish()
        self._now = now + work
        if self._pieces:
            self._left -= work
        return self._now

    def close(self) -> float:
        """When all that is queued is decoded."""
        while self._pieces:
            self._run_alone()
        return self._now

    @property
    def _waiting(self) -> int:
        """Blocks of which no piece has been begun."""
        return len({block for block, _, _ in self._pieces} - {self._pieces[0][0]})

    def _run_alone(self) -> float:
        self._now += self._left
        self._finish()
        return self._now

    def _finish(self) -> None:
        block, _, last = self._pieces.popleft()
        self._decoded(block, last, self._began, self._now)
        if self._pieces:
            self._left, self._began = self._pieces[0][1], self._now


class Lane:
    """Walks its parts as `scheduler.loop.drive` does: expect, receive, run, send.

    Iterating it steps through its parts; it yields what it waits for, or None between two parts.
    """

    def __init__(
        self,
        name: str,
        leader: int,
        plan: Plan,
        efforts: Efforts,
        next_part: Callable[[], Task | None],
        channels: Mapping[tuple[str, str], Channel],
        factor: Callable[[], float],
        record: Record,
        start: float,
    ) -> None:
        """`leader` is the worker whose actions are recorded; `factor` gives how much longer than
        reckoned the next part takes."""
        self.name, self.clock = name, start
        self._leader, self._plan, self._efforts = leader, plan, efforts
        self._next, self._channels, self._factor = next_part, channels, factor
        self._record, self._ahead = record, 1 if plan.degrees.stages > 1 else 0
        self._known_ways: dict[
            tuple[Kind, int, int | None],
            tuple[tuple[Channel, ...], tuple[tuple[Edge, Channel], ...]],
        ] = {}
        self._sending: deque[tuple[Channel, int]] = deque()
        self.compute = self.exposed = self.bubble = 0.0
        self.bytes = self.parts = 0
        self.decoder: Decoder | None = None
        self.on_part: Callable[[Task, float, float], None] = lambda part, start, stop: None
        self.pieces: Callable[[Task], Sequence[float]] = lambda part: ()
        self.encoded: dict[int, float] = {}  # when the prompt of a tick is there for all lanes

    def __iter__(self) -> Iterator[Channel | int | None]:
        waiting: deque[tuple[Task, list[tuple[Channel, int]]]] = deque()
        while True:
            while len(waiting) <= self._ahead and (part := self._next()) is not None:
                coming = [(way, way.expect(self.clock)) for way in self._ways(part)[0]]
                waiting.append((part, coming))
            if not waiting:
                return
            part, coming = waiting.popleft()
            start = self.clock
            for channel, number in coming:
                while channel.there(number) is None:
                    yield channel
                self._receive(channel, number)
            if part.kind is Kind.ENCODE and part.stage > 0:
                while part.tick not in self.encoded:
                    yield part.tick
                self._stand_still("wait for the prompt", self.encoded[part.tick], 0.0)
            self._run(part)
            for edge, channel in self._ways(part)[1]:
                yield from self._make_room()
                self._send(edge, channel, part)
            self.on_part(part, start, self.clock)
            yield None

    def _make_room(self) -> Iterator[Channel]:
        """Wait until an earlier message has left, where too many are on their way."""
        while len(self._sending) >= IN_FLIGHT:
            channel, number = self._sending.popleft()
            while (left := channel.left(number)) is None:
                yield channel
            self._stand_still("wait for earlier messages", left, left - self.clock)

    def _ways(self, part: Task) -> tuple[tuple[Channel, ...], tuple[tuple[Edge, Channel], ...]]:
        """By which channels a part's edges come and go, but for those within rank 0."""
        key = part.kind, part.stage, part.branch
        found = self._known_ways.get(key)
        if found is None:
            coming = (e for e in self._plan.incoming(part) if e.payload is not Payload.LATENT)
            going = (e for e in self._plan.outgoing(part) if e.payload is not Payload.LATENT)
            found = self._known_ways[key] = (
                tuple(self._channels[edge.source, edge.target] for edge in coming),
                tuple((edge, self._channels[edge.source, edge.target]) for edge in going),
            )
        return found

    def _receive(self, channel: Channel, number: int) -> None:
        there = channel.there(number)
        assert there is not None
        self._stand_still("wait for a stage", there, there - channel.sent_at(number))

    def _stand_still(self, name: str, until: float, travelling: float) -> None:
        """Wait; of it, bytes are on their way for `travelling` seconds at most, at its end."""
        wait = until - self.clock
        if wait <= 0:
            return
        exposed = min(wait, max(0.0, travelling))
        self.exposed += exposed
        self.bubble += wait - exposed
        if self._record is not forget:
            self._record(Action(self._leader, Activity.WAIT, name, self.clock, until))
        self.clock = until

    def _send(self, edge: Edge, channel: Channel, part: Task) -> None:
        travel = self._efforts.travel(edge, part)
        number = channel.send(self.clock, travel)
        self.bytes += travel.bytes
        if travel.bytes:
            self._sending.append((channel, number))

    def _run(self, part: Task) -> None:
        self.parts += 1
        if part.kind is Kind.DECODE:
            assert self.decoder is not None
            free = self.decoder.put(self.clock, part.block, self.pieces(part))
            self._stand_still("wait for the decoder", free, 0.0)
            return
        effort = self._efforts.effort(part)
        start, work = self.clock, effort.compute * self._factor()
        stop = start + work if self.decoder is None else self.decoder.beside(start, work)
        exposed = effort.exchange + max(0.0, effort.beside - (stop - start))
        self.compute += stop - start
        self.exposed += exposed
        self.bytes += effort.bytes
        self.clock = stop + exposed
        if self._record is not forget:
            name = describe(part, self._plan)
            self._record(Action(self._leader, Activity.COMPUTE, name, start, self.clock))
            if exposed:
                name = f"exchange in {name}"
                self._record(Action(self._leader, Activity.WAIT, name, stop, self.clock))
        if part.kind is Kind.ENCODE and part.stage == 0:
            self.encoded[part.tick] = self.clock


def describe(part: Task, plan: Plan) -> str:
    """As a measured trace names it, such as `denoise of block 3, step 2, stage 1, branch 0`."""
    stage = f", stage {part.stage}" if plan.degrees.stages > 1 else ""
    branch = "" if part.branch is None else f", branch {part.branch}"
    return f"{part.describe()}{stage}{branch}"
