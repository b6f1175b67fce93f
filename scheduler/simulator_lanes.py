"""The processes of a simulation: lanes that walk their parts, and channels between them.

A lane is the workers that share every task; they keep step, so one clock stands for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

from longtake.scheduler.efforts import Efforts, Travel
from longtake.scheduler.plan import Plan
from longtake.scheduler.simulator_decoding import Decoder
from longtake.scheduler.task import Edge, Kind, Payload, Task
from longtake.scheduler.timeline import Action, Activity, Record, forget

IN_FLIGHT = 2  # messages that a sender does not wait for; see `parallel.link`


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
        self.on_decode: Callable[[Task, float], None] = lambda part, now: None
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
            self.on_decode(part, self.clock)
            free = self.decoder.wait_for_room(self.clock)
            self._stand_still("wait for the decoder", free, 0.0)
            return
        effort = self._efforts.effort(part)
        start, work = self.clock, effort.compute * self._factor()
        stop, crowded = start + work, 0.0
        if self.decoder is not None:
            self.decoder.advance(start)
            crowded = effort.crowded if self.decoder.busy else 0.0
            stop = self.decoder.beside(start, work)
        exposed = effort.exchange + crowded + max(0.0, effort.beside - (stop - start))
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
