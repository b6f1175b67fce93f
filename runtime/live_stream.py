"""One of several streams, as those see it that take its frames, and its way through the VAE."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from torch import Tensor

from longtake.runtime.closable import Closable
from longtake.runtime.decoding import DecodeWorker, LoneDecoder
from longtake.runtime.lanes import Ahead
from longtake.runtime.live import Live
from longtake.runtime.model import Model
from longtake.runtime.source import Frame, Source, Start
from longtake.scheduler.admission import LaunchTimes
from longtake.scheduler.decode_degrees import decode_piece
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.pacing import LiveReport
from longtake.scheduler.streams import Join, Seated
from longtake.scheduler.task import STREAM, Edge, Span, Task
from longtake.scheduler.timeline import forget

BLOCKS_AHEAD = 2  # that are made before the frames of the first of them are taken


class LiveStream(Iterator[Frame], Closable):
    """Iterate for frames, (H, W, 3) uint8 RGB, in order; close it to leave the others.

    Attributes:
        joined: its seat and its request.
        seated: its place in the batch, once it has it.
        live: its clock, if it has one.
        ahead: has the blocks of its input; None: it is made from noise.
        decoder: its own lane of the VAE, once it has made a block.
        ending: whether the blocks that have begun are its last.
        launches, shared: that it took part in, and how many of them others did, too.
    """

    def __init__(
        self,
        joined: Join,
        changed: threading.Condition,
        spec: ModelSpec,
        live: Live | None,
    ) -> None:
        """`changed` is of the batch."""
        self.joined, self.live, self.ending = joined, live, False
        self.launches = self.shared = 0
        self.seated: Seated | None = None
        self.ahead: Ahead[Start] | None = None
        self.decoder: DecodeWorker | None = None
        self._changed, self._spec = changed, spec
        request = joined.request
        self._left = None if request.seconds is None else request.pixel_frames  # to be made
        self._frames: deque[Frame] = deque()
        self._promised = 0  # frames whose latents are done, and that were not taken yet
        self._over = False
        self._error: BaseException | None = None

    @property
    def report(self) -> LiveReport | None:
        """How a live stream has gone so far; None of any other."""
        return None if self.live is None else self.live.report()

    def __next__(self) -> Frame:
        """The next frame; waits until it is there.

        Raises:
            StopIteration: the video is over, or the stream was closed.
            UserError: the streams failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._over)
            if not self._frames:
                if self._error is not None:
                    raise self._error
                raise StopIteration
            self._promised -= 1
            self._changed.notify_all()
            return self._frames.popleft()

    def switch(self, prompt: str) -> float:
        """Change the prompt from the next block on that has not begun; returns its second.

        Raises:
            UserError: the prompt is empty, or the last block has begun.
        """
        assert self.seated is not None
        schedule = self.seated.schedule
        return schedule.script.cues[schedule.switch(prompt).cue].at

    def close(self) -> None:
        """Leave; frames that were not taken are dropped."""
        with self._changed:
            self.ending = self._over = True
            self._frames.clear()
            self._promised = 0
            self._changed.notify_all()
        if self.live is not None:
            self.live.close()
        if self.ahead is not None:
            self.ahead.close()

    @property
    def has_room(self) -> bool:
        """Whether its frames are taken, so that more can be made."""
        block = self._spec.block_frames * self._spec.temporal_stride
        return self.ending or self._promised <= BLOCKS_AHEAD * block

    def has(self, blocks: int) -> bool:
        """Whether so many blocks of its input can begin at once, or it is at its end."""
        return self.ending or self.ahead is None or self.ahead.has(blocks)

    def can_begin(self, source: Source, block: int) -> bool:
        """Whether there is something to make a block of; where its input fails, it is over."""
        try:
            return source.ready(block)
        except BaseException as error:  # noqa: BLE001 - raised to the one who takes the frames
            self._error = error
            return False

    def promise(self, frames: Span) -> None:
        """The latents of these frames of the batch are done, and will be decoded."""
        first = frames.start - (0 if self.seated is None else self.seated.numbers.frame)
        spec = self._spec
        made = spec.pixel_frames(first + len(frames)) - spec.pixel_frames(first)
        with self._changed:
            self._promised += 0 if self._over else made

    def deliver(self, frames: np.ndarray) -> None:
        """Frames are made; those beyond the end are dropped."""
        with self._changed:
            if self._left is not None:
                self._promised -= max(0, len(frames) - self._left)
                frames = frames[: self._left]
                self._left -= len(frames)
            if self.live is not None:
                self.live.made(len(frames))
            if not self._over:
                self._frames.extend(frames)
            self._changed.notify_all()

    def finish(self) -> None:
        """All its blocks are handed on; end it once they are decoded, in a thread."""
        threading.Thread(target=self._finish, name="end of stream", daemon=True).start()

    def fail(self, error: BaseException) -> None:
        """There will be no more frames, and why."""
        with self._changed:
            self._error, self._over = error, True
            self._changed.notify_all()

    def _finish(self) -> None:
        try:
            if self.decoder is not None:
                with self.decoder:
                    pass  # what is queued is decoded when the context is left
        except BaseException as error:  # noqa: BLE001 - raised to the one who takes the frames
            self._error = error
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self.live is not None:
            self.live.close()


class Decoders:
    """The lane of the VAE where every stream has its own; see `scheduler.loop.Worker`."""

    def __init__(
        self,
        model: Model,
        take: Callable[[int], Tensor],
        streams: Mapping[int, LiveStream],
        times: LaunchTimes,
    ) -> None:
        """`take` gives a block's latents; `streams` are by seat; `times` hears how long blocks
        take."""
        self._model, self._take, self._streams, self._times = model, take, streams, times

    def expect(self, edge: Edge, task: Task) -> None:
        """Blocks come from within this process: there is nothing to make ready."""

    def receive(self, edge: Edge) -> None:
        """Blocks are taken when they are queued."""

    def run(self, task: Task) -> None:
        """Queue a block."""
        stream = self._streams[task.block // STREAM]
        if stream.decoder is None:
            stream.decoder = DecodeWorker(
                LoneDecoder(self._model.vae),
                lambda task: self._take(task.block),
                decode_piece(self._model.spec),
                self._model.transformer.device,
                0,
                forget,
                stream.deliver,
                self._decoded,
            )
        stream.promise(task.frames)
        stream.decoder.run(task)

    def send(self, edge: Edge) -> None:
        """Nothing leaves this lane but frames."""
        raise ValueError(f"the decoding lane sends no {edge.payload}")

    def _decoded(self, latent_frames: int, seconds: float) -> None:
        self._times.note(1, seconds * self._model.spec.block_frames / latent_frames)
