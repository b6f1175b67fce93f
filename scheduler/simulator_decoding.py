"""Decoding in a simulation: beside every lane that has a part in it, on the same devices.

All that decode keep step, piece by piece. So a piece takes every lane as long as it takes them
together, and its frames are there when the last of them is through with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from longtake.scheduler.decode_degrees import decode_piece
from longtake.scheduler.efforts import Effort, Efforts
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.task import Kind, Span, Task

DEPTH = 2  # blocks that wait for the decoder at most; see `runtime.decoding`
WARM_UP = 2  # latent frames of nothing that are decoded before a run; see `runtime.decoding`


class DecodedEfforts(Efforts, Protocol):
    """Efforts, and who decodes."""

    @property
    def workers(self) -> Mapping[str, tuple[int, ...]]:
        """The ranks of every lane of the transformer."""
        ...

    @property
    def decoders(self) -> Mapping[str, tuple[int, ...]]:
        """The ranks that decode, by lane; lanes without any are left out."""
        ...

    @property
    def decoder_stages(self) -> int:
        """Runs of the decoder's layers, which work on as many pieces."""
        ...

    @property
    def contention(self) -> tuple[float, float]:
        """By how much decoding and the rest slow each other down; see `Decoder`."""
        ...


@dataclass(frozen=True)
class Piece:
    """A few latent frames of a block to decode; they are there at the instant `ready`."""

    block: int
    number: int
    last: bool
    effort: Effort
    ready: float

    @property
    def seconds(self) -> float:
        """With nothing beside it."""
        return self.effort.compute + self.effort.exchange


class Decoder:
    """What decodes beside a lane, on the same devices, in order.

    `contention` is by how much its computing slows the lane down, and the lane it, while both are
    at work: 1 and 1 on one GPU, 0 and 0 where each has processors of its own.
    """

    def __init__(
        self, contention: tuple[float, float], decoded: Callable[[Piece, float, float], None]
    ) -> None:
        """`decoded` hears of a piece, its start and its stop."""
        self._contention, self._decoded = contention, decoded
        self._pieces: deque[Piece] = deque()
        self._left = 0.0  # of the first piece, in seconds of its own
        self._began: float | None = None  # the first piece
        self._now = 0.0
        self.worked = self.alone = 0.0  # in all; and computing while the lane does not
        self.bytes = 0

    def put(self, piece: Piece) -> None:
        """Queue it."""
        if not self._pieces:
            self._left = piece.seconds
        self._pieces.append(piece)
        self.worked += piece.seconds
        self.bytes += piece.effort.bytes

    def wait_for_room(self, now: float) -> float:
        """When whoever has queued a block may go on."""
        self.advance(now)
        while self._waiting > DEPTH:
            now = self._run_alone()
        return now

    def advance(self, until: float) -> None:
        """Decode alone up to an instant."""
        while self._pieces and self._start + self._left <= until:
            self._run_alone()
        if self._pieces and self._start < until:
            self._begin(self._start)
            self._pass_alone(until - self._start)
        self._now = max(self._now, until)

    def beside(self, start: float, work: float) -> float:
        """When computing that begins at `start` and alone takes `work` is over."""
        self.advance(start)
        now = start
        while self._pieces and work > 0 and self._start < now + work:
            work -= self._start - now
            now = self._start
            self._begin(now)
            work_slower, slower = self._slower
            ends = self._left * slower <= work * work_slower
            both = min(self._left * slower, work * work_slower)
            now += both
            self._left -= both / slower
            work = max(0.0, work - both / work_slower)
            self._now = now
            if ends:
                self._finish()
        self._now = now + work
        return self._now

    def close(self) -> float:
        """When all that is queued is decoded."""
        while self._pieces:
            self._run_alone()
        return self._now

    @property
    def _start(self) -> float:
        """When the first piece is begun or goes on."""
        return max(self._now, self._pieces[0].ready)

    @property
    def busy(self) -> bool:
        """Whether anything is there to decode now."""
        return bool(self._pieces) and self._start <= self._now

    @property
    def _slower(self) -> tuple[float, float]:
        """How many times as long the lane takes, and the first piece."""
        effort, seconds = self._pieces[0].effort, self._pieces[0].seconds
        share = effort.compute / seconds if seconds else 0.0
        of_lane, own = self._contention
        return 1.0 + of_lane * share, 1.0 + own * share

    @property
    def _waiting(self) -> int:
        """Blocks of which no piece has been begun."""
        return max(0, len({piece.block for piece in self._pieces}) - 1)

    def _begin(self, now: float) -> None:
        if self._began is None:
            self._began = now

    def _run_alone(self) -> float:
        start = self._start
        self._begin(start)
        self._now = start + self._left
        self._pass_alone(self._left)
        self._finish()
        return self._now

    def _pass_alone(self, seconds: float) -> None:
        piece = self._pieces[0]
        self.alone += seconds * piece.effort.compute / piece.seconds if piece.seconds else 0.0
        self._left -= seconds

    def _finish(self) -> None:
        assert self._began is not None
        self._decoded(self._pieces.popleft(), self._began, self._now)
        self._began = None
        if self._pieces:
            self._left = self._pieces[0].seconds


class Decoding:
    """The decoders of all lanes."""

    def __init__(
        self,
        efforts: DecodedEfforts,
        spec: ModelSpec,
        start: float,
        decoded: Callable[[int, Piece, float, float], None],
        there: Callable[[Piece, float], None],
    ) -> None:
        """`decoded` hears of a lane's first worker, a piece, its start and its stop there; `there`
        when its frames are."""
        self._efforts, self._there = efforts, there
        self._piece = decode_piece(spec, efforts.decoder_stages)
        self._told = decoded
        self._open: dict[tuple[int, int], tuple[int, float]] = {}  # lanes that miss a piece
        self.decoders: dict[str, Decoder] = {}
        for name, workers in efforts.workers.items():
            if name in efforts.decoders:
                decoder = Decoder(efforts.contention, partial(self._decoded, workers[0]))
                decoder.advance(start)
                self.decoders[name] = decoder
        for frame in range(WARM_UP):
            nothing = Task(0, Kind.DECODE, 0, Span(frame, frame + 1), 0)
            for name, effort in efforts.decode(nothing).items():
                self.decoders[name].bytes += effort.bytes

    @property
    def worked(self) -> float:
        """Seconds in which rank 0 decodes."""
        return next(iter(self.decoders.values())).worked

    def put(self, part: Task, now: float) -> None:
        """Queue a block wherever it is decoded, a few latent frames at a time."""
        frames = part.frames
        for number, first in enumerate(range(frames.start, frames.stop, self._piece)):
            span = Span(first, min(first + self._piece, frames.stop))
            last = span.stop == frames.stop
            for name, effort in self._efforts.decode(replace(part, frames=span)).items():
                self.decoders[name].put(Piece(part.block, number, last, effort, now))

    def close(self) -> float:
        """When all that is queued is decoded."""
        return max(decoder.close() for decoder in self.decoders.values())

    def _decoded(self, worker: int, piece: Piece, start: float, stop: float) -> None:
        self._told(worker, piece, start, stop)
        key = piece.block, piece.number
        missing, latest = self._open.pop(key, (len(self.decoders), 0.0))
        latest = max(latest, stop)
        if missing > 1:
            self._open[key] = missing - 1, latest
        else:
            self._there(piece, latest)
