"""A batch of blocks, one at each noise level, through which a stream flows: one block out a tick.

StreamDiffusionV2 (arXiv 2511.07399). The cache has a row for every step. A block at step i sees the
keys and values of earlier blocks in row i, written when those took that same step, and writes its
own there: nothing is evaluated cleanly, so a block costs its steps and no more. All blocks of a
launch are independent of each other, and with `apart` so are the launches of that many ticks, which
fills as many stages of layers.

The sink may be renewed: where the newest frame of a row is little like one of its sink, it takes
that one's place. The released code decides so for each layer alone, while it runs; here it is one
decision for a row, over all layers, which holds once every worker can know it.

The stream begins with a few blocks that are made together, through all steps. What they leave in
the cache at the last step is the past that every row starts from; it is kept once, for all rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Script
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind, Part, Seen, Span, Task
from longtake.scheduler.traffic import runs


@dataclass
class Passing:
    """A block in the batch; `step` is the one that it takes next, at the tick `due`."""

    block: int
    frames: Span
    cue: int
    step: int = 0
    due: int = 0


@dataclass
class Rows:
    """What the rows of the cache hold while a stream goes by.

    Attributes:
        retention: how much of the past a row keeps.
        shared: the frames that all rows start from; they are kept in a row of their own.
        count: rows, one a step; the one of the shared frames comes after them.
        seen: by row, the frames that its next block may see, in order.
        sinks: by row, those of them that are not forgotten.
    """

    retention: Retention
    shared: Span
    count: int
    seen: list[list[int]] = field(init=False)
    sinks: list[set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = [list(self.shared.frames()) for _ in range(self.count)]
        self.sinks = [self._firsts(self.shared) for _ in range(self.count)]

    def _firsts(self, frames: Span) -> set[int]:
        return set(range(frames.start, min(frames.stop, self.retention.sink)))

    def admit(self, row: int, frames: Span) -> tuple[tuple[Span, ...], bool]:
        """Make room for `frames`, which a row keeps from now on.

        Returns:
            What they see there, and whether the window is full.
        """
        past, window = self.seen[row], self.retention.window
        full = window is not None and len(past) + len(frames) > window
        if window is not None and full:
            tail = [frame for frame in past if frame not in self.sinks[row]]
            room = window - len(frames) - len(self.sinks[row])
            gone = set(tail[: len(tail) - room])
            past = [frame for frame in past if frame not in gone]
        self.seen[row] = [*past, *frames.frames()]
        self.sinks[row] |= self._firsts(frames)
        return tuple(runs(set(past))), full

    def renew(self, row: int, old: int, new: int) -> None:
        """Let a frame take another's place in a row's sink, if both are still there."""
        if old in self.sinks[row] and new in self.seen[row]:
            self.sinks[row] ^= {old, new}
            self.seen[row].remove(old)

    def keeper(self, row: int, frame: int) -> int:
        """The row of the cache that keeps a frame for a row."""
        return self.count if frame < self.shared.stop else row

    def home(self, row: int, frames: Span) -> list[tuple[int, Span]]:
        """Where frames that a row sees lie, in order: the row that keeps them, and which."""
        cut = min(max(self.shared.stop, frames.start), frames.stop)
        halves = ((self.count, Span(frames.start, cut)), (row, Span(cut, frames.stop)))
        return [(keeper, span) for keeper, span in halves if len(span)]

    def kept(self) -> set[tuple[int, int]]:
        """All that is kept, as (row, frame)."""
        return {
            (self.keeper(row, frame), frame)
            for row, frames in enumerate(self.seen)
            for frame in frames
        }


@dataclass(frozen=True)
class StreamBatch:
    """See the module.

    Attributes:
        retention: of every row of the cache; the window counts the block itself.
        steps: that a block takes, which is also how many rows there are.
        together: blocks that are made together before the stream begins.
        apart: ticks from one step of a block to its next.
        likeness: a row's sink is renewed where its newest frame is less like it than that, as a
            cosine; -1: never, 1: every time.
    """

    retention: Retention
    steps: int
    together: int = 2
    apart: int = 1
    likeness: float = -1.0
    label: str = "lossy"

    def __post_init__(self) -> None:
        for name in ("steps", "together", "apart"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not -1 <= self.likeness <= 1:
            raise UserError(f"likeness must be within -1 .. 1, got {self.likeness:g}")
        if self._renews and self.retention.positions is Positions.SINK_REBASED:
            raise UserError(
                "a sink that is renewed can't be rebased: set strategy.positions to relative or "
                "absolute, or strategy.likeness to -1"
            )

    @property
    def _renews(self) -> bool:
        return self.likeness > -1

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """As of causal generation."""
        return Causal(self.retention).blocks(request, spec)

    def check(self, request: Request, spec: ModelSpec) -> None:
        """As of causal generation; and the window must hold the blocks that are made together."""
        Causal(self.retention).check(request, spec)
        first = self._beginning(request, spec) * spec.block_frames
        if self.retention.window is not None and self.retention.window < first:
            raise UserError(
                f"a window of {self.retention.window} latent frames can't hold the {first} that "
                f"are made together; set strategy.together lower, or strategy.window to {first}"
            )

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """A block at every step, or those that are made together."""
        most = max(self.clips(request, spec), self._beginning(request, spec))
        return most * spec.block_frames

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """A window for every row; a sink that is never renewed they share."""
        window = Causal(self.retention).cached_frames(request, spec)
        first = self._beginning(request, spec) * spec.block_frames
        common = first if self.retention.window is None else min(self.retention.sink, first)
        common = 0 if self._renews else common
        return common + self.steps * (window - common)

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """A row for each worker."""
        blocks = self.blocks(request, spec)
        return self.steps if blocks is None else min(self.steps, blocks)

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Write a launch for each tick, and the decode of every block that it finishes.

        Raises:
            ValueError: these are not the steps of this strategy.
        """
        if steps != self.steps:
            raise ValueError(f"there are {self.steps} rows for {steps} steps")
        ticks = count()
        entering = self._entering(ticks, self.blocks(request, spec), spec, script)
        together: list[Passing] = []
        for encode, passing in islice(entering, self.together):
            yield from encode
            together.append(passing)
        if together:
            shared = Span(0, together[-1].frames.stop)
            yield from self._begin(ticks, together)
            rows = Rows(self.retention, shared, steps)
            yield from self._flow(ticks, entering, rows, script)

    def begun(self, launch: int) -> int:
        """How many blocks begin up to a launch, counted from 0, unless the video ends."""
        return self.together + max(0, launch + 1 - self.steps)

    def _beginning(self, request: Request, spec: ModelSpec) -> int:
        blocks = self.blocks(request, spec)
        return self.together if blocks is None else min(self.together, blocks)

    def _entering(
        self, ticks: Iterator[int], blocks: int | None, spec: ModelSpec, script: Script
    ) -> Iterator[tuple[list[Task], Passing]]:
        """Open one block after the other, when asked for it; with the encode of a new prompt."""
        previous = None
        for block in count() if blocks is None else range(blocks):
            cue = script.begin(block)
            if cue is None:
                return
            frames = Span(block * spec.block_frames, (block + 1) * spec.block_frames)
            new = cue != previous
            encode = [Task(next(ticks), Kind.ENCODE, block, frames, cue)] if new else []
            previous = cue
            yield encode, Passing(block, frames, cue)

    def _begin(self, ticks: Iterator[int], together: list[Passing]) -> Iterator[Task]:
        """All steps of the first blocks, which see each other and nothing else."""
        for step in range(self.steps):
            last = step == self.steps - 1
            parts = tuple(
                Part(
                    passing.block,
                    passing.frames,
                    step,
                    passing.cue,
                    passing.frames.start,
                    tuple(Seen(p.frames, p.frames.start) for p in together if p is not passing),
                    writes=self.steps if last else None,
                    last=last,
                )
                for passing in together
            )
            yield launch(next(ticks), parts)
        yield from (decode(next(ticks), passing) for passing in together)

    def _flow(
        self,
        ticks: Iterator[int],
        entering: Iterator[tuple[list[Task], Passing]],
        rows: Rows,
        script: Script,
    ) -> Iterator[Task]:
        """The stream: a block enters at every tick, and one leaves."""
        batch: deque[Passing] = deque()  # the one that entered first is the first to leave
        compared: deque[tuple[int, Task]] = deque()  # launches that are not asked for yet
        for now in count():
            entered = list(islice(entering, 1))
            for encode, passing in entered:
                yield from encode
                batch.append(replace(passing, due=now))
            if not batch:
                return
            at_work = [passing for passing in batch if passing.due == now]
            if at_work:
                before = rows.kept()
                while compared and compared[0][0] < now - self.apart:  # it has left the stages
                    self._renew(compared.popleft()[1], rows, script)
                task = launch(next(ticks), tuple(self._part(each, rows) for each in at_work))
                if any(part.compares for part in task.parts):
                    compared.append((now, task))
                gone = sorted(before - rows.kept())
                evicts = tuple((row, Span(frame, frame + 1)) for row, frame in gone)
                yield replace(task, cue=batch[0].cue, evicts=evicts)
            for passing in at_work:
                passing.step += 1
                passing.due = now + self.apart
            if batch[0].step == self.steps:
                yield decode(next(ticks), batch.popleft())

    def _renew(self, task: Task, rows: Rows, script: Script) -> None:
        """Renew the sinks that have become unlike the newest frames, as they were in a launch."""
        likeness = script.likeness(task.tick)
        if likeness is None:
            return
        for part, found in zip(task.parts, likeness, strict=True):
            row = part.writes
            assert row is not None
            compared = zip(found, part.compares, strict=True)
            still = [(like, frame) for like, (_, frame) in compared if frame in rows.sinks[row]]
            like, old = min(still, default=(1.0, -1))
            if like < self.likeness:
                rows.renew(row, old, part.frames.stop - 1)

    def _part(self, passing: Passing, rows: Rows) -> Part:
        frames, row = passing.frames, passing.step
        context, full = rows.admit(row, frames)
        compared = sorted(rows.sinks[row]) if full and self._renews else []
        place = self.retention.place(context, frames)
        return Part(
            passing.block,
            frames,
            passing.step,
            passing.cue,
            place[frames.start],
            tuple(
                Seen(some, place[some.start], keeper)
                for span in context
                for keeper, some in rows.home(row, span)
            ),
            writes=row,
            last=passing.step == self.steps - 1,
            compares=tuple((rows.keeper(row, frame), frame) for frame in compared),
        )


def launch(tick: int, parts: tuple[Part, ...]) -> Task:
    """One launch; latents of what it finishes aren't needed afterwards."""
    front = parts[0]
    drops = tuple(part.block for part in parts if part.last)
    return Task(tick, Kind.DENOISE, front.block, front.frames, front.cue, parts=parts, drops=drops)


def decode(tick: int, passing: Passing) -> Task:
    """A finished block to pixels."""
    return Task(tick, Kind.DECODE, passing.block, passing.frames, passing.cue)
