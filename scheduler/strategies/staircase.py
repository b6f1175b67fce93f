"""Blocks on a staircase of noise levels: all move down together, one leaves, the next one enters.

What Rolling Forcing and StreamDiT have in common. A block enters once the one before it is a stair
ahead; a stair is as many steps as let `in_flight` blocks, or fewer, stand on it at a time. While
the first blocks enter and the last ones leave there are fewer of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.schedule import Script
from longtake.scheduler.strategies.cascade import Flight
from longtake.scheduler.task import Kind, Span, Task

Prompts = Literal["own", "newest"]
MakeLaunch = Callable[[int, list[Flight]], Task]


@dataclass(frozen=True)
class Staircase:
    """How blocks follow each other.

    Attributes:
        in_flight: blocks in the making at once, at most.
        prompts: `own`: a block keeps the prompt that it began under; `newest`: a switch of prompt
            holds at once for all blocks in the making.
        commits: whether a finished block takes part in one launch more, cleanly.
    """

    in_flight: int
    prompts: Prompts
    commits: bool

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise UserError(f"at least 1 block is in flight, got {self.in_flight}")
        if self.prompts not in ("own", "newest"):
            raise UserError(f"prompts must be own or newest, got {self.prompts!r}")

    def stair(self, steps: int) -> int:
        """How many steps a block takes before the next one enters."""
        return -(-steps // self.in_flight)

    def tasks(
        self, blocks: int | None, spec: ModelSpec, steps: int, script: Script, launch: MakeLaunch
    ) -> Iterator[Task]:
        """Write a launch for each tick, and the decode of every block that it finishes.

        `launch` is given the tick and the blocks that take part, the foremost first; one that has
        taken all `steps` is clean.
        """
        ticks, stair = count(), self.stair(steps)
        flying: list[Flight] = []
        begun, cue = 0, None
        while True:
            if begun != blocks and (not flying or flying[-1].step >= stair):
                previous, cue = cue, script.begin(begun)
                if cue is None:
                    blocks = begun
                else:
                    frames = Span(begun * spec.block_frames, (begun + 1) * spec.block_frames)
                    if cue != previous:
                        yield Task(next(ticks), Kind.ENCODE, begun, frames, cue)
                    flying.append(Flight(begun, frames, cue))
                    begun += 1
                    for flight in flying:
                        if self.prompts == "newest" and flight.step < steps:
                            flight.cue = cue
            if not flying:
                return
            yield launch(next(ticks), flying)
            for flight in flying:
                flight.step += 1
                if flight.step == steps:
                    yield Task(next(ticks), Kind.DECODE, flight.block, flight.frames, flight.cue)
            stays = steps if self.commits else steps - 1
            flying = [flight for flight in flying if flight.step <= stays]
