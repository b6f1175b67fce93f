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
class Seen:
    """Frames that a part attends to besides its own.

    Attributes:
        frames: they must be of one other part of the launch, or all be cached.
        at: the temporal position at which the first of them is seen.
        row: of the cache; None: live, of the other part of this launch that has them.
        bias: added to the scores.
        within: only queries at most so many frames away see a frame; None: all do.
    """

    frames: Span
    at: int
    row: int | None = None
    bias: float = 0.0
    within: int | None = None


@dataclass(frozen=True)
class Part:
    """A run of a block's frames in a launch, all at one level.

    The tokens of a launch go through the layers side by side, but each part attends only to its own
    frames and to what it `sees`.

    Attributes:
        block: whose latents are evaluated.
        frames: which of the video's.
        step: the index of its level, which is also the step that it takes; None: it is clean.
        cue: the prompt it runs under.
        at: the temporal position of its first frame.
        sees: besides its own frames.
        writes: the row of the cache that keeps its keys and values; None: they are not kept.
        last: whether it finishes its block.
        idle: it is there to be attended to, and what comes out is dropped.
        bias, within: of its own frames, as in `Seen`.
    """

    block: int
    frames: Span
    step: int | None
    cue: int
    at: int
    sees: tuple[Seen, ...] = ()
    writes: int | None = None
    last: bool = False
    idle: bool = False
    bias: float = 0.0
    within: int | None = None


@dataclass(frozen=True)
class Task:
    """The atom of a schedule.

    `tick` is its place in the global order; `frames` what it reads or makes; `context` the spans of
    committed frames that it attends to besides its own; `cue` the prompt it runs under; `last` is
    set on the DENOISE that finishes a block.

    An evaluation is of one block under a retention policy, or a launch of several `parts`, which
    say themselves what they see; then `block` is the foremost one. Before a launch the cache
    forgets what it `evicts`, frames by row; after it the latents of the blocks that it `drops` are
    not needed any more. `resumes` is set on the RESTORE after which the latents of all blocks in
    the making are those that an earlier run left.

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
    parts: tuple[Part, ...] = ()
    evicts: tuple[tuple[int, Span], ...] = ()
    drops: tuple[int, ...] = ()
    resumes: bool = False
    stage: int = 0
    branch: int | None = None

    @property
    def length(self) -> int:
        """How many latent frames are evaluated."""
        return sum(len(part.frames) for part in self.parts) if self.parts else len(self.frames)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks whose latents are read, each once."""
        return tuple(dict.fromkeys(part.block for part in self.parts)) or (self.block,)

    @property
    def finishes(self) -> tuple[int, ...]:
        """The blocks that it finishes."""
        if self.parts:
            return tuple(dict.fromkeys(part.block for part in self.parts if part.last))
        return (self.block,) if self.last else ()

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
