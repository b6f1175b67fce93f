"""The vocabulary of schedules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NO_PROMPT = -1  # in place of a cue: the empty prompt
STREAM = 1 << 32  # where streams share launches, the numbers of each begin that much later


class Kind(StrEnum):
    """What a task does."""

    ENCODE = "encode"  # a cue's text to embeddings
    RESTORE = "restore"  # a finished block's latents out of the journal, instead of its steps
    DENOISE = "denoise"  # one step of a block: evaluate the model and, unless staged, advance
    ADVANCE = "advance"  # the flow from the last stage moves the block to its next level
    COMMIT = "commit"  # evaluate a finished block cleanly and keep its keys and values
    RECACHE = "recache"  # write the keys and values of past frames again, under a new prompt
    REBALANCE = "rebalance"  # move layers between stages, with what the cache keeps of them
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
        frames: they must be of one part of the launch, or all be cached.
        at: the temporal position at which the first of them is seen.
        row: of the cache; None: live, of the other part of this launch that has them, or the
            part's own where no other has.
        bias: added to the scores.
        within: only queries at most so many frames away see a frame; None: all do.
        beyond: only queries more than so many frames away do; None: all.
    """

    frames: Span
    at: int
    row: int | None = None
    bias: float = 0.0
    within: int | None = None
    beyond: int | None = None

    @property
    def by_distance(self) -> bool:
        """Whether some queries see frames that others don't."""
        return self.within is not None or self.beyond is not None

    def seen_by(self, frame: int) -> tuple[Span, ...]:
        """Those of its frames that a query of this frame of the video sees, in order."""
        first, stop = self.frames.start, self.frames.stop
        if self.within is not None:
            first, stop = max(first, frame - self.within), min(stop, frame + self.within + 1)
        spans = [Span(first, stop)]
        if self.beyond is not None:
            before, after = frame - self.beyond, frame + self.beyond + 1
            spans = [Span(first, min(stop, before)), Span(max(first, after), stop)]
        return tuple(span for span in spans if span.start < span.stop)


@dataclass(frozen=True)
class Part:
    """A run of a block's frames in a launch, all at one level.

    The tokens of a launch go through the layers side by side, but each part attends only to its own
    frames and to what it `sees`.

    Attributes:
        block: whose latents are evaluated.
        frames: which of the video's.
        step: the index of its level, which is also the step that it takes; None: it is clean.
        cue: the prompt it runs under, or `NO_PROMPT`.
        blend: a later cue and its share, 0 .. 1, of the embeddings; None: `cue` alone.
        at: the temporal position of its first frame.
        sees: besides its own frames.
        writes: the row of the cache that keeps its keys and values; None: they are not kept.
        keeps: the frames whose keys are kept, where it is not all of them.
        last: whether it finishes its block.
        idle: it is there to be attended to, and what comes out is dropped.
        bias, within: of its own frames, as in `Seen`.
        sees_itself: otherwise its own frames are seen only where `sees` has them.
        compares: kept frames, as (row, frame); how like they are to the last of its own may be
            asked of `schedule.Script.likeness` later.
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
    sees_itself: bool = True
    keeps: Span | None = None
    compares: tuple[tuple[int, int], ...] = ()
    blend: tuple[int, float] | None = None

    @property
    def kept(self) -> Span:
        """The frames whose keys are kept, if it `writes`."""
        return self.frames if self.keeps is None else self.keeps


@dataclass(frozen=True)
class Task:
    """The atom of a schedule.

    `tick` is its place in the global order; `frames` what it reads or makes; `context` the spans of
    committed frames that it attends to besides its own; `cue` the prompt it runs under; `last` is
    set on the DENOISE that finishes a block. Where its queries decide what stays cached, it
    `selects`, and is evaluated even if its block is there already.

    An evaluation is of one block under a retention policy, or a launch of several `parts`, which
    say themselves what they see; then `block` is the foremost one, and prompts older than `cue` and
    those of the parts are not needed any more. Of other streams that share the launch, `cues` say
    the same. Before a launch the cache forgets what it `evicts`, frames by row; after it the
    latents of the blocks that it `drops` are not needed any more. A REBALANCE says how many
    `layers` each stage has from then on.
    `resumes` is set on the RESTORE after which the latents of all blocks in the making are those
    that an earlier run left.

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
    selects: bool = False
    parts: tuple[Part, ...] = ()
    evicts: tuple[tuple[int, Span], ...] = ()
    drops: tuple[int, ...] = ()
    resumes: bool = False
    cues: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
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
    def moves(self) -> tuple[int, ...]:
        """The blocks whose latents its flow changes, if it has one."""
        taken = [part.block for part in self.parts if part.step is not None and not part.idle]
        return tuple(dict.fromkeys(taken)) if self.parts else (self.block,)

    @property
    def finishes(self) -> tuple[int, ...]:
        """The blocks that it finishes."""
        if self.parts:
            return tuple(dict.fromkeys(part.block for part in self.parts if part.last))
        return (self.block,) if self.last else ()

    @property
    def keeps_noisy(self) -> bool:
        """Whether it keeps keys of frames that aren't clean, which can't be had again later."""
        return any(part.writes is not None and part.step is not None for part in self.parts)

    def describe(self) -> str:
        """For people, such as `denoise of block 3, step 2`."""
        if self.kind is Kind.REBALANCE:
            return f"{self.kind} to {'+'.join(map(str, self.layers))} layers"
        step = f", step {self.step}" if self.kind in (Kind.DENOISE, Kind.ADVANCE) else ""
        stream, block = divmod(self.block, STREAM)
        whose = f" of stream {stream}" if stream else ""
        return f"{self.kind} of block {block}{whose}{step}"


@dataclass(frozen=True)
class Edge:
    """What a task of a block on one lane gives to a task of that block on another."""

    payload: Payload
    block: int
    source: str
    target: str
    branch: int | None = None
