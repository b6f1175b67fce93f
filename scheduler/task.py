"""The vocabulary of schedules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a task does."""

    ENCODE = "encode"  # a cue's text to embeddings
    DENOISE = "denoise"  # one step of a block
    COMMIT = "commit"  # evaluate a finished block cleanly and keep its keys and values
    RECACHE = "recache"  # write the keys and values of past frames again, under a new prompt
    DECODE = "decode"  # a finished block to pixels


class Payload(StrEnum):
    """What travels along an edge."""

    LATENT = "latent"


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
    """

    tick: int
    kind: Kind
    block: int
    frames: Span
    cue: int
    step: int = 0
    context: tuple[Span, ...] = ()
    last: bool = False


@dataclass(frozen=True)
class Edge:
    """What a task of a block on one lane gives to a task of that block on another."""

    payload: Payload
    block: int
    source: str
    target: str
