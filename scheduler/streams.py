"""Several streams in one schedule: their launches are evaluated together, and share nothing else.

Each stream has a seat, and its own schedule. The numbers of a seat's blocks, frames and prompts
begin where no other's reach, and it has rows of the cache of its own; so what a part may see is
what it sees alone, and whoever evaluates launches need not know of streams at all.

Streams join and leave between launches, and a launch takes those that a conductor names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Protocol

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Schedule, Script, Verdict
from longtake.scheduler.strategies.stream import StreamBatch
from longtake.scheduler.task import NO_PROMPT, STREAM, Kind, Part, Seen, Span, Task


@dataclass(frozen=True)
class Join:
    """A stream takes a seat. `number` is unlike that of any other."""

    number: int
    seat: int
    request: Request


@dataclass(frozen=True)
class Turn:
    """The next launch: who joins before it, and which seats it takes, perhaps none; or, where it
    is over, that there are no more."""

    joins: tuple[Join, ...] = ()
    takes: tuple[int, ...] = ()
    over: bool = False


@dataclass(frozen=True)
class Numbers:
    """Where the numbers of a stream begin among those of all."""

    block: int
    frame: int
    cue: int
    row: int

    def of(self, task: Task) -> Task:
        """A task of the stream's own schedule among those of all."""
        return replace(
            task,
            block=task.block + self.block,
            frames=self._frames(task.frames),
            cue=self._cue(task.cue),
            parts=tuple(map(self._part, task.parts)),
            evicts=tuple((row + self.row, self._frames(frames)) for row, frames in task.evicts),
            drops=tuple(block + self.block for block in task.drops),
        )

    def _frames(self, frames: Span) -> Span:
        return Span(frames.start + self.frame, frames.stop + self.frame)

    def _cue(self, cue: int) -> int:
        return cue if cue == NO_PROMPT else cue + self.cue

    def _seen(self, seen: Seen) -> Seen:
        row = None if seen.row is None else seen.row + self.row
        return replace(seen, frames=self._frames(seen.frames), row=row)

    def _part(self, part: Part) -> Part:
        return replace(
            part,
            block=part.block + self.block,
            frames=self._frames(part.frames),
            cue=self._cue(part.cue),
            sees=tuple(map(self._seen, part.sees)),
            writes=None if part.writes is None else part.writes + self.row,
            keeps=None if part.keeps is None else self._frames(part.keeps),
            blend=None if part.blend is None else (self._cue(part.blend[0]), part.blend[1]),
        )


@dataclass
class Seated:
    """A stream in its seat.

    Attributes:
        joined: as what it came.
        schedule: its own.
        numbers: of its seat, for as long as it has it.
        launches: that it took part in.
        kept: what the cache keeps of it, as (row, frame).
    """

    joined: Join
    schedule: Schedule
    numbers: Numbers
    tasks: Iterator[Task]
    launches: int = 0
    kept: set[tuple[int, int]] = field(default_factory=set)

    def local(self, block: int) -> int:
        """The number of a block in its own schedule."""
        return block - self.numbers.block

    def next(self) -> list[Task]:
        """What comes before its next launch, and the launch; without one, it is at its end."""
        found: list[Task] = []
        for task in self.tasks:
            found.append(self.numbers.of(task))
            if task.parts:
                self._keep(found[-1])
                break
        return found

    def decodes(self, launch: Task) -> Iterator[Task]:
        """Of what a launch has finished."""
        return map(self.numbers.of, islice(self.tasks, len(launch.finishes)))

    def _keep(self, launch: Task) -> None:
        self.launches += 1
        for row, frames in launch.evicts:
            self.kept -= {(row, frame) for frame in frames.frames()}
        for part in launch.parts:
            if part.writes is not None:
                self.kept |= {(part.writes, frame) for frame in part.kept.frames()}


class Conductor(Protocol):
    """Who says which streams go together; on all workers the same."""

    def turn(self, tick: int) -> Turn:
        """What the launch is made of that would be at this tick; may wait."""
        ...

    def begin(self, stream: Seated) -> Callable[[int], Verdict]:
        """What `Schedule.tasks` asks of a stream's blocks."""
        ...

    def left(self, stream: Seated) -> None:
        """A stream is at its end; all its blocks were handed on to be decoded."""
        ...


@dataclass(frozen=True)
class Seats:
    """What several streams of a strategy need at once; see `Strategy`."""

    strategy: StreamBatch
    number: int

    @property
    def label(self) -> str:
        """As of one stream."""
        return self.strategy.label

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """All of them in it."""
        return self.number * self.strategy.longest_launch(request, spec)

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """Each has rows of its own."""
        return self.number * self.strategy.cached_frames(request, spec)

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """Parts of all of them are shared out."""
        return self.number * self.strategy.clips(request, spec)


class Batch:
    """The schedule of streams that come and go. Walk it once.

    Attributes:
        request: a pattern; all streams have its size, rate and guidance.
        seated: by seat.
    """

    def __init__(
        self, strategy: StreamBatch, request: Request, spec: ModelSpec, steps: int, seats: int
    ) -> None:
        """Raises:
        UserError: there are no seats, or streams would have to be asked what they look like.
        """
        if seats < 1:
            raise UserError(f"streams need at least 1 seat, got {seats}")
        if strategy.likeness > -1:
            raise UserError(
                "streams that share launches can't renew their sinks; set strategy.likeness to -1"
            )
        strategy.check(request, spec)
        self.request, self.spec, self.steps = request, spec, steps
        self.strategy, self._each = Seats(strategy, seats), strategy
        self.script = Script(request, spec)
        self.seated: dict[int, Seated] = {}
        rows = steps + 1
        self._free = {
            seat: Numbers(seat * STREAM, seat * STREAM, seat * STREAM, seat * rows)
            for seat in range(seats)
        }
        self._gone: dict[int, Seated] = {}  # who made the blocks of a seat before
        self._owed: list[tuple[int, Span]] = []  # what streams left behind in the cache

    def check(self, request: Request) -> None:
        """See that a stream can share launches with the others.

        Raises:
            UserError: it is of another size, rate or guidance; or see `Strategy.check`.
        """
        for name in ("width", "height", "fps", "guidance"):
            wanted, got = getattr(self.request, name), getattr(request, name)
            if wanted != got:
                raise UserError(
                    f"streams that share launches have one {name}: {wanted:g} here, got {got:g}"
                )
        self._each.check(request, self.spec)

    @property
    def together(self) -> int:
        """How many blocks of a stream begin before its first launch."""
        return self._each.together

    def begun(self, stream: Seated) -> int:
        """How many blocks of a stream will have begun with its next launch, unless it ends."""
        return self._each.begun(stream.launches)

    def begins(self, stream: Seated) -> int:
        """How many of them begin for it."""
        before = self._each.begun(stream.launches - 1) if stream.launches else 0
        return self.begun(stream) - before

    def of_block(self, block: int) -> Seated:
        """Whose block it is; stages may still be at work on the last ones of who has just left."""
        seat = block // STREAM
        here = self.seated.get(seat)
        return here if here and here.local(block) >= 0 else self._gone[seat]

    def texts(self, cue: int) -> tuple[str, str]:
        """What guidance leads away from under a cue, and its prompt."""
        stream = self.seated[cue // STREAM]
        request, script = stream.schedule.request, stream.schedule.script
        return request.negative, script.cues[cue - stream.numbers.cue].text

    def tasks(self, conductor: Conductor) -> Iterator[Task]:
        """All tasks in order, as the conductor has them."""
        for tick in count():
            turn = conductor.turn(tick)
            for join in turn.joins:
                self._seat(join, conductor)
            if turn.over:
                return
            launches: list[tuple[Seated, Task]] = []
            for seat in turn.takes:
                stream = self.seated[seat]
                found = stream.next()
                yield from (replace(task, tick=tick) for task in found if not task.parts)
                if found and found[-1].parts:
                    launches.append((stream, found[-1]))
                else:
                    self._leave(stream)
                    conductor.left(stream)
            if launches:
                yield self._together(tick, [task for _, task in launches])
                for stream, task in launches:
                    yield from (replace(each, tick=tick) for each in stream.decodes(task))

    def _seat(self, join: Join, conductor: Conductor) -> None:
        self.check(join.request)
        schedule = Schedule(self._each, join.request, self.spec, self.steps)
        stream = Seated(join, schedule, self._free.pop(join.seat), iter(()))
        stream.tasks = schedule.tasks(conductor.begin(stream))
        self.seated[join.seat] = stream

    def _leave(self, stream: Seated) -> None:
        del self.seated[stream.joined.seat]
        if stream.launches:
            self._gone[stream.joined.seat] = stream
        script, old = stream.schedule.script, stream.numbers
        blocks = script.next_block
        self._free[stream.joined.seat] = Numbers(
            old.block + blocks,
            old.frame + blocks * self.spec.block_frames,
            old.cue + len(script.cues),
            old.row,
        )
        self._owed += [(row, Span(frame, frame + 1)) for row, frame in sorted(stream.kept)]

    def _together(self, tick: int, launches: list[Task]) -> Task:
        evicts = (*self._owed, *(evict for task in launches for evict in task.evicts))
        self._owed.clear()
        return replace(
            launches[0],
            tick=tick,
            kind=Kind.DENOISE,
            parts=tuple(part for task in launches for part in task.parts),
            evicts=evicts,
            drops=tuple(block for task in launches for block in task.drops),
            cues=tuple(task.cue for task in launches[1:]),
        )
