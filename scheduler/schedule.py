"""A schedule: the lazy sequence of a request's tasks, which reacts to events while it is walked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Protocol, runtime_checkable

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.task import Kind, Span, Task


@dataclass(frozen=True)
class Switch:
    """From `block` on, the cue with this index holds."""

    block: int
    cue: int


@dataclass(frozen=True)
class Verdict:
    """What becomes of a block: `go` on with it, or end before; `kept` blocks need no denoising.

    `until` is of the whole schedule: launches up to that tick have been done by an earlier run.
    `layers` are how many each stage is to have before the block begins; None: as they are.
    """

    go: bool = True
    kept: bool = False
    until: int = -1
    layers: tuple[int, ...] | None = None


Likeness = Callable[[int], list[list[float]] | None]


class Script:
    """Which cue holds for which block; it grows when prompts change while the video runs.

    A change by hand holds until the next planned cue.
    """

    def __init__(self, request: Request, spec: ModelSpec) -> None:
        self.cues = list(request.cues)
        self._spec = spec
        self._planned = [round(cue.at * request.fps) for cue in request.cues]  # pixel frames
        self._since: dict[int, int] = {}  # the first pixel frame under each cue so far
        self._added: list[Switch] = []
        self._begun = -1
        self.on_hold: Callable[[], None] = lambda: None  # may wait, while prompts can change
        self.on_begin: Callable[[int], bool] = lambda block: True  # may still add switches
        self.on_likeness: Likeness = lambda tick: None
        self.lock = threading.RLock()  # prompts change in other threads than the one that walks

    def begin(self, block: int, start: int | None = None) -> int | None:
        """Begin a block: the index of the cue that holds for it, which is fixed from now on.

        None: the video is to end before this block, though those that have begun are finished.
        `start` is its first latent frame, where blocks aren't all of the model's length.
        """
        self.on_hold()
        with self.lock:
            self._begun = max(self._begun, block)
            if not self.on_begin(block):
                return None
            return self.cue_at(block, start)

    def cue_at(self, block: int, start: int | None = None) -> int:
        """The cue that holds for what begins at this latent frame, of a block that has begun."""
        with self.lock:
            start = block * self._spec.block_frames if start is None else start
            here = self._spec.pixel_frames(start)
            due = [cue for cue, frame in enumerate(self._planned) if frame <= here]
            due += [switch.cue for switch in self._added if switch.block <= block]
            for cue in due:
                self._since[cue] = min(here, self._since.get(cue, here))
            return max(due, key=lambda cue: (self._since[cue], cue))

    def likeness(self, tick: int) -> list[list[float]] | None:
        """For every part of the launch at `tick`, how like what it `compares` is, -1 .. 1.

        It is the cosine of the mean keys, and of the mean values, averaged over those and over all
        layers. Ask once, for launches that compare, and so late that no stage waits for another.
        None: nothing is evaluated.
        """
        return self.on_likeness(tick)

    def changes(self, since: int) -> list[tuple[str, float, int]]:
        """Text, second and block of what was added by hand, without the first `since`."""
        planned = len(self.cues) - len(self._added)
        cues = self.cues[planned:]
        return [(c.text, c.at, s.block) for c, s in zip(cues, self._added, strict=True)][since:]

    def add(self, text: str, at: float, block: int) -> Switch:
        """Change the prompt from `block` on, which begins at `at` seconds."""
        self.cues.append(Cue(at, text))
        switch = Switch(block, len(self.cues) - 1)
        self._added.append(switch)
        return switch

    @property
    def next_block(self) -> int:
        """The first block whose cue can still change."""
        return self._begun + 1


class Needs(Protocol):
    """How much is in the making at once."""

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """Latent frames evaluated at once, at most."""
        ...

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """Latent frames whose keys and values are kept at once, at most; in all rows together."""
        ...

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """Among how many workers the parts of a launch can be shared out."""
        ...


class Strategy(Needs, Protocol):
    """Request -> tasks and contexts. A strategy is data; its methods are pure."""

    @property
    def label(self) -> str:
        """`exact`, `rounding` or `lossy`, against the same model run jointly over all frames."""
        ...

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """How many blocks the video takes; None for an endless one."""
        ...

    def check(self, request: Request, spec: ModelSpec) -> None:
        """Refuse, with a `UserError`, what this strategy can't do."""
        ...

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Write the tasks, in one legal global order; `script.begin` opens every block."""
        ...


@runtime_checkable
class CountsSteps(Protocol):
    """A strategy that can't take just any number of steps."""

    def check_steps(self, steps: int) -> None:
        """Refuse, with a `UserError`, what this strategy can't do."""
        ...


@runtime_checkable
class HasSeams(Protocol):
    """A strategy whose seams are not simply where the model's blocks begin."""

    def seams(self, frames: int) -> list[int]:
        """The latent frames, of so many, at which something else begins."""
        ...


class Schedule:
    """The tasks of one request. Walk it once; `switch` and `stop` act at the next block."""

    def __init__(self, strategy: Strategy, request: Request, spec: ModelSpec, steps: int) -> None:
        strategy.check(request, spec)
        if isinstance(strategy, CountsSteps):
            strategy.check_steps(steps)
        self.strategy, self.request, self.spec, self.steps = strategy, request, spec, steps
        self.script = Script(request, spec)
        self.blocks = strategy.blocks(request, spec)
        self._stopped = False
        self._granted: int | None = None
        self._may_begin = threading.Condition(self.script.lock)

    def __iter__(self) -> Iterator[Task]:
        return self.tasks(lambda block: Verdict(go=not self.stopped))

    def tasks(self, decide: Callable[[int], Verdict]) -> Iterator[Task]:
        """All tasks in order. `decide` is asked once for each block, right before its first.

        Where several workers walk schedules of one request, it must answer all of them the same.
        """
        latest, until = Verdict(), -1
        layers: tuple[int, ...] | None = None
        owed: list[tuple[int, Span]] = []  # what skipped launches would have evicted

        def begin(block: int) -> bool:
            nonlocal latest, until, layers
            latest = decide(block)
            until = max(until, latest.until)
            layers = latest.layers or layers
            return latest.go

        self.script.on_begin = begin
        for task in self.strategy.tasks(self.request, self.spec, self.steps, self.script):
            if layers is not None:
                tick, block, frames, cue = task.tick, task.block, task.frames, task.cue
                yield Task(tick, Kind.REBALANCE, block, frames, cue, layers=layers)
                layers = None
            if task.parts:
                yield from _remaining(task, until, owed)
            elif not (latest.kept and task.kind is Kind.DENOISE):
                yield task
            else:
                if task.selects:
                    yield replace(task, last=False)
                if task.last:
                    yield replace(task, kind=Kind.RESTORE, selects=False)

    def finished(self, tick: int) -> set[int]:
        """The blocks that tasks up to `tick` finish, with the prompts that are known now."""
        again = Schedule(self.strategy, self.request, self.spec, self.steps)
        for change in self.script.changes(0):
            again.script.add(*change)
        done = takewhile(lambda task: task.tick <= tick, again)
        return {block for task in done for block in task.finishes}

    @property
    def stopped(self) -> bool:
        """Whether the blocks that have begun are the last."""
        return self._stopped

    def switch(
        self,
        text: str,
        block: int | None = None,
        record: Callable[[Switch], None] = lambda switch: None,
    ) -> Switch:
        """Change the prompt; returns from which block on it holds.

        `record` hears of it first, while that block can't begin; if it raises, nothing changes.

        Raises:
            UserError: the prompt is empty, or no block is left that it could hold for.
        """
        if not text.strip():
            raise UserError("the prompt is empty; say what the video should show")
        with self.script.lock:
            at = self.script.next_block if block is None else block
            if self.blocks is not None and at >= self.blocks:
                raise UserError("the last block has begun; the prompt can't change any more")
            record(Switch(at, len(self.script.cues)))
            return self.script.add(text, self.second_of(at), at)

    def second_of(self, block: int) -> float:
        """Where a block begins in the video."""
        return self.spec.pixel_frames(block * self.spec.block_frames) / self.request.fps

    def stop(self) -> None:
        """End after the tasks of the blocks that have begun."""
        with self._may_begin:
            self._stopped = True
            self._may_begin.notify_all()

    def grant(self, block: int) -> None:
        """Let blocks up to this one begin; whoever grants once has to grant them all, in time."""
        with self._may_begin:
            self._granted = block
            self._may_begin.notify_all()

    def await_grant(self, block: int) -> bool:
        """Wait until a block may begin, while prompts can still change; False if it is to stop."""
        with self._may_begin:
            self._may_begin.wait_for(
                lambda: self._stopped or self._granted is None or block <= self._granted
            )
            return not self._stopped


def _remaining(task: Task, until: int, owed: list[tuple[int, Span]]) -> Iterator[Task]:
    """What is left to do of a launch, where those up to the tick `until` have been done.

    Clean parts are evaluated again, for the cache; they depend on nothing that is noisy.
    """
    task = replace(task, evicts=(*owed, *task.evicts))
    owed.clear()
    if task.kind is not Kind.DENOISE or task.tick > until:
        yield task
        return
    clean = tuple(part for part in task.parts if part.step is None and part.writes is not None)
    if clean:
        yield replace(task, kind=Kind.COMMIT, parts=clean)
    else:
        owed += task.evicts
    yield replace(task, kind=Kind.RESTORE, resumes=task.tick == until)
