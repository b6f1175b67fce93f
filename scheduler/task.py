"""The vocabulary of schedules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a task does."""

    ENCODE = "encode"  # a cue's text to embeddings
    RESTORE = "restore"  # a finished block's latents out of the journal, instead of its steps
    DENOISE = "denoise"  # one step of a block: evaluate the model and, unless staged, advance
    ADVANCE = "advance"  # the flow from the last stage moves the block to its next level
    COMMIT = "commit"  # evaluate a finished block cleanly and keep its keys and values
    RECACHE = "recache"  # write the keys and values of past frames again, under a new prompt
    DECODE = "decode"  # a finished block to pixels


class Payload(StrEnum):
    """What travels along an edge."""

    LATENT = "latent"  # a finished block
    HIDDEN = "hidden"  # the tokens between two stages
    FLOW = "flow"  # what the last stage predicts


@dataclass(frozen=True, order=True)
class Span:
    """Latent frames start .. stop - 1."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def frames(self) -> range:
        """The frames, in order."""
        return range(self.start, self.stop)


@dataclass(frozen=True)
class Task:
    """The atom of a schedule.

    `tick` is its place in the global order; `frames` what it reads or makes; `context` the spans of
    committed frames that it attends to besides its own; `cue` the prompt it runs under; `last` is
    set on the DENOISE that finishes a block.

    A strategy writes whole tasks. A plan cuts them by `stage` of layers and, to fill the stages, by
    `branch` of guidance: None is all of them.
    """

    tick: int
    kind: Kind
    block: int
    frames: Span
    cue: int
    step: int = 0
    context: tuple[Span, ...] = ()
    last: bool = False
    stage: int = 0
    branch: int | None = None

    def describe(self) -> str:
        """For people, such as `denoise of block 3, step 2`."""
        step = f", step {self.step}" if self.kind in (Kind.DENOISE, Kind.ADVANCE) else ""
        return f"{self.kind} of block {self.block}{step}"


@dataclass(frozen=True)
class Edge:
    """What a task of a block on one lane gives to a task of that block on another."""

    payload: Payload
    block: int
    source: str
    target: str
    branch: int | None = None
