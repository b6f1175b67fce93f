"""Streams that come and go, and share the launches of one model as far as all stay in time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import monotonic

import torch

from longtake.parallel.mesh import alone
from longtake.runtime.encoding import encoded
from longtake.runtime.lanes import Ahead
from longtake.runtime.live import Live
from longtake.runtime.live_stream import Decoders, LiveStream
from longtake.runtime.model import Model
from longtake.runtime.noise import Noise
from longtake.runtime.samplers import Sampler
from longtake.runtime.source import Frame, Mixing, NoiseSource, Source, Start
from longtake.runtime.streams import StreamsMember
from longtake.scheduler.admission import Beat, LaunchTimes, Waiting, next_launch, sustained
from longtake.scheduler.errors import UserError
from longtake.scheduler.plan import DECODE
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Verdict
from longtake.scheduler.streams import Batch, Join, Seated, Turn

PATIENCE = 10.0  # seconds after which others are told that there is nothing to do
SOON = 0.005  # seconds: when to look again for what should be there and is not


class LiveBatch:
    """Runs streams of one model in a thread, on one device. Close it to end them all.

    A launch takes as many streams as can all be in time, by what launches took so far; a stream
    whose frames are not taken, or do not come, is left out and holds up nobody.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        sampler: Sampler,
        noise_of: Callable[[Request], Noise],
    ) -> None:
        """`batch` is new; `noise_of` gives the noise of a stream."""
        self._model, self._batch, self._noise_of = model, batch, noise_of
        self._changed = threading.Condition()
        self._joining: list[LiveStream] = []
        self._streams: dict[int, LiveStream] = {}  # by seat
        self._sources: dict[int, Source] = {}  # by number
        self._numbers = 0
        self._closing = False
        self._error: BaseException | None = None
        self.launch_times, self._decode_times = LaunchTimes(), LaunchTimes()
        self._latest: tuple[float, int] | None = None  # when a launch began, of how many streams
        self._member = StreamsMember(
            model.transformer,
            batch,
            sampler,
            noise_of,
            alone(model.transformer.device),
            (model.config.text_tokens, model.text_encoder.config.d_model),
            model.encode_text,
            self._sources,
            {},
            self,
        )
        decoders = Decoders(model, self._member.worker.take, self._streams, self._decode_times)
        self._thread = threading.Thread(
            target=self._work, args=(decoders,), name="streams", daemon=True
        )
        self._thread.start()

    def join(
        self,
        request: Request,
        frames: Iterable[Frame] | None = None,
        mixing: Mixing | None = None,
        live: Live | None = None,
    ) -> LiveStream:
        """Take another stream in, from the next launch on.

        `frames` are at the rate of the request, and go in by `mixing`; None: it is made from noise.
        With `live` they come as that has them, and the stream has deadlines.

        Raises:
            UserError: it does not fit the others, all seats are taken, or it or another one would
                miss its deadlines.
        """
        self._batch.check(request)
        with self._changed:
            seat = self._free_seat()
            if live is not None:
                self._admit(live)
            joined = Join(self._numbers, seat, request)
            self._numbers += 1
            stream = LiveStream(joined, self._changed, self._batch.spec, live)
            self._sources[joined.number] = self._source(stream, frames, mixing)
            self._joining.append(stream)
            self._changed.notify_all()
            self._changed.wait_for(lambda: stream.seated is not None or self._error is not None)
            self._raise()
        return stream

    def close(self) -> None:
        """End all streams after the blocks that have begun; frames not taken are dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            streams = [*self._streams.values(), *self._joining]
        for stream in streams:
            stream.close()
        self._thread.join()

    def turn(self, tick: int) -> Turn:
        """For the schedule: see `scheduler.streams.Conductor`."""
        self._note_launch()
        until = monotonic() + PATIENCE
        with self._changed:
            while True:
                now = monotonic()
                if self._joining:
                    return self._seat()
                if self._closing and not self._streams:
                    return Turn(over=True)
                waiting = [self._waiting(stream, now) for stream in self._streams.values()]
                start = until
                if any(each.ready < math.inf for each in waiting):
                    start, group = next_launch(waiting, now, self.launch_times.seconds)
                    if start <= now:
                        self._begin_launch(group)
                        return Turn(takes=group)
                if now >= until:
                    return Turn()
                self._changed.wait(min(start, until) - now)

    def begin(self, stream: Seated) -> Callable[[int], Verdict]:
        """For the schedule: see `scheduler.streams.Conductor`."""
        here, source = self._streams[stream.joined.seat], self._sources[stream.joined.number]
        with self._changed:
            here.seated = stream
            self._changed.notify_all()
        return lambda block: Verdict(go=not here.ending and here.can_begin(source, block))

    def left(self, stream: Seated) -> None:
        """For the schedule: see `scheduler.streams.Conductor`."""
        with self._changed:
            gone = self._streams.pop(stream.joined.seat)
            self._changed.notify_all()
        del self._sources[stream.joined.number]
        gone.finish()

    def _free_seat(self) -> int:
        """One that nobody has; a stream that was closed has its own until its last block is made,
        which is waited for."""
        while True:
            self._raise()
            taken = {*self._streams, *(stream.joined.seat for stream in self._joining)}
            free = sorted(set(range(self._batch.strategy.number)) - taken)
            if free:
                return free[0]
            if not any(stream.ending for stream in self._streams.values()):
                raise UserError(f"all {len(taken)} seats are taken; end a stream, or set more")
            self._changed.wait()

    def _seat(self) -> Turn:
        self._streams |= {stream.joined.seat: stream for stream in self._joining}
        turn = Turn(joins=tuple(stream.joined for stream in self._joining))
        self._joining.clear()
        return turn

    def _waiting(self, stream: LiveStream, now: float) -> Waiting:
        """When a stream's next launch can be, and by when it is due."""
        assert stream.seated is not None
        live, seated = stream.live, stream.seated
        due = math.inf
        came = None if live is None else live.comes(self._newest(seated))
        if live is not None and came is not None:
            due = came + live.slack - self._decode_times.seconds(1)
        if not stream.has_room:
            return Waiting(seated.joined.seat, math.inf, math.inf)
        if stream.has(self._batch.begins(seated)):
            return Waiting(seated.joined.seat, now, due)
        ready = math.inf if came is None else max(came, now + SOON)
        return Waiting(seated.joined.seat, ready, due)

    def _newest(self, stream: Seated) -> int:
        """The last frame, of the input, of what begins before a stream's next launch."""
        spec = self._batch.spec
        return spec.pixel_frames(self._batch.begun(stream) * spec.block_frames) - 1

    def _begin_launch(self, group: tuple[int, ...]) -> None:
        for seat in group:
            self._streams[seat].launches += 1
            self._streams[seat].shared += len(group) > 1
        together = [self._streams[seat].seated for seat in group]
        flowing = all(s is not None and self._batch.begins(s) == 1 for s in together)
        self._latest = (monotonic(), len(group)) if flowing else None

    def _note_launch(self) -> None:
        """How long the launch before took; those at the start of a stream are of another size."""
        if self._latest is None:
            return
        if self._model.transformer.device.type == "cuda":
            torch.cuda.current_stream(self._model.transformer.device).synchronize()
        began, streams = self._latest
        self.launch_times.note(streams, monotonic() - began)
        self._latest = None

    def _admit(self, new: Live) -> None:
        """See that all live streams would be in time with one more."""
        spec, request = self._batch.spec, self._batch.request
        period = spec.block_frames * spec.temporal_stride / request.fps
        now, decode = monotonic(), self._decode_times.seconds(1)
        beats = [Beat(now, period, new.slack - decode)]
        for stream in [*self._streams.values(), *self._joining]:
            if stream.live is not None:
                seated = stream.seated
                came = None if seated is None else stream.live.comes(self._newest(seated))
                first = now if came is None else came
                beats.append(Beat(first, period, stream.live.slack - decode))
        seconds = self.launch_times.seconds
        if not sustained(beats, seconds):
            raise UserError(
                f"{len(beats)} live streams would be late here: a launch of them all may take "
                f"{seconds(len(beats)):.2f} s and decoding {decode:.2f} s, and each has a block "
                f"every {period:.2f} s; set latency higher, or steps lower"
            )

    def _source(
        self, stream: LiveStream, frames: Iterable[Frame] | None, mixing: Mixing | None
    ) -> Source:
        request = stream.joined.request
        noise = self._noise_of(request)
        if frames is None:
            return NoiseSource(noise)
        assert mixing is not None
        ahead = partial(self._ahead, stream)
        return encoded(frames, self._model, request, noise, mixing, ahead)

    def _ahead(self, stream: LiveStream, items: Iterator[Start]) -> Ahead[Start]:
        stream.ahead = Ahead("encode", items, self._batch.together, self._told)
        return stream.ahead

    def _told(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise UserError("the streams were closed")

    def _work(self, decoders: Decoders) -> None:
        try:
            self._member.run({DECODE: decoders})
        except BaseException as error:  # noqa: BLE001 - raised to all who take frames
            with self._changed:
                self._error = error
                self._changed.notify_all()
            for stream in [*self._streams.values(), *self._joining]:
                stream.fail(error)
