"""One request from tasks to frames: where rank 0's share of the work meets decoding and output."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from longtake.parallel.balance import Balance
from longtake.parallel.mesh import Mesh, alone
from longtake.runtime.lanes import BackgroundLane
from longtake.runtime.live import Live
from longtake.runtime.member import Member
from longtake.runtime.model import Model
from longtake.runtime.noise import Noise
from longtake.runtime.progress import Forecast, Progress
from longtake.runtime.samplers import Sampler
from longtake.runtime.source import Source
from longtake.runtime.workers import BlockStore
from longtake.scheduler.decode_degrees import decode_piece
from longtake.scheduler.pacing import LiveReport
from longtake.scheduler.plan import DECODE
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.tally import Occupancy
from longtake.scheduler.task import Kind, Task
from longtake.scheduler.timeline import Action, Activity, Record, Timeline, forget

log = logging.getLogger(__name__)


class FrameSink(Protocol):
    """Where frames go: a file, pictures, a consumer."""

    def write(self, frames: np.ndarray) -> None:
        """Take the next frames, (n, H, W, 3) uint8."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a run went. `finished` is False if it was stopped; `evaluations` counts forwards; `live`
    is of a live run; `moves` of layers are told as (block before which, layers of each stage)."""

    finished: bool
    frames: int
    blocks_made: int
    blocks_restored: int
    evaluations: int
    timeline: Timeline
    live: LiveReport | None = None
    moves: tuple[tuple[int, tuple[int, ...]], ...] = ()


class Engine:
    """Runs one request, alone or as rank 0 of a mesh whose other ranks are `Member`s.

    State belongs to the run, so engines don't disturb each other. `context_timestep` is the noise
    level told to the model when clean blocks are committed. `record` hears of all tasks, and of
    decoding and writing as lanes of their own. Blocks begin from `source`, None: from the noise;
    `live` hears of frames that are handed on.
    """

    def __init__(
        self,
        model: Model,
        schedule: Schedule,
        sampler: Sampler,
        noise: Noise,
        sink: FrameSink,
        store: BlockStore | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        context_timestep: float = 0.0,
        mesh: Mesh | None = None,
        record: Record = forget,
        source: Source | None = None,
        live: Live | None = None,
        balance: Balance | None = None,
    ) -> None:
        self._model, self._schedule = model, schedule
        self._sink, self._on_progress = sink, on_progress
        self._timeline, self._live = Timeline(), live
        self._member = Member(
            model.transformer,
            schedule,
            sampler,
            noise,
            alone(model.transformer.device) if mesh is None else mesh,
            (model.config.text_tokens, model.text_encoder.config.d_model),
            model.encode_text,
            store,
            context_timestep,
            record,
            source=source,
            balance=balance,
        )
        self._record = self._member.record
        self._lock = threading.Lock()
        self._frames = 0
        self._block = 0
        request, spec = schedule.request, model.spec
        self._total_frames = None if request.seconds is None else request.pixel_frames
        self._piece = decode_piece(spec)
        self._forecast = self._make_forecast()

    def _make_forecast(self) -> Forecast:
        blocks, frames, spec = self._schedule.blocks, self._total_frames, self._model.spec
        if blocks is None or frames is None:
            return Forecast({}, {})
        schedule = self._schedule
        evaluations = decoded = largest = 0
        for task in Schedule(schedule.strategy, schedule.request, spec, schedule.steps):
            if task.kind is Kind.DECODE:
                decoded += len(task.frames)
                largest = max(largest, len(task.frames))
            evaluations += task.kind in (Kind.DENOISE, Kind.COMMIT)
        return Forecast(
            work={"denoise": evaluations, "decode": decoded, "write": frames},
            parcel={
                "denoise": 1,
                "decode": largest,
                "write": self._piece * spec.temporal_stride,
            },
        )

    def stop(self) -> None:
        """End cleanly after the block at work; callable from another thread or a signal handler."""
        self._schedule.stop()

    def occupancy(self) -> Occupancy:
        """Of this worker's cache; from any thread."""
        return self._member.worker.occupancy()

    def run(self, walk: AbstractContextManager[None] | None = None) -> Outcome:
        """Walk the whole schedule; returns when every frame made is in the sink.

        `walk` is entered for as long as this worker's share of the tasks takes.

        Raises:
            UserError: the run needs more memory than there is, or the sink can't be written.
        """
        denoise = self._member.worker
        self._warm_decoder()
        self._timeline.begin()  # what came before belongs to loading
        made: set[int] = set()
        restored: set[int] = set()
        moves: list[tuple[int, tuple[int, ...]]] = []

        def watch(tasks: Iterator[Task]) -> Iterator[Task]:
            for task in tasks:
                self._block = task.block
                start = time.monotonic()
                yield task
                self._ran(task, time.monotonic() - start)
                if task.kind is Kind.RESTORE:
                    restored.update(task.finishes)
                elif task.kind is Kind.DENOISE:
                    made.update(task.finishes)
                elif task.kind is Kind.REBALANCE:
                    moves.append((task.block, task.layers))

        with (
            closing(self._live) if self._live else nullcontext(),
            closing(BackgroundLane("write", self._write)) as writer,
            self._member.decode_worker(self._model.vae, writer.put, self._decoded) as decode,
        ):
            self._schedule.script.on_hold = decode.wait_for_room
            self._member.run({DECODE: decode}, watch, walk)
        total = self._total_frames
        return Outcome(
            finished=total is None or self._frames == total,
            frames=self._frames,
            blocks_made=len(made),
            blocks_restored=len(restored),
            evaluations=denoise.evaluations,
            timeline=self._timeline,
            live=None if self._live is None else self._live.report(),
            moves=tuple(moves),
        )

    def _warm_decoder(self) -> None:
        """The first forecast then knows what decoding costs."""
        spec, request = self._model.spec, self._schedule.request
        pace = self._member.warm_decoder(self._model.vae)
        self._forecast.note("decode", 1e-6, 1e-6 * pace)
        self._forecast.note("write", 1e-6, 1e-6 * pace / spec.temporal_stride / 10)
        log.debug(
            "decoding takes %.3f s a latent frame at %dx%d", pace, request.width, request.height
        )

    def _ran(self, task: Task, seconds: float) -> None:
        if task.kind is Kind.RESTORE:  # no evaluation: it tells nothing of the pace
            if self._forecast.work:
                self._forecast.work["denoise"] -= 1 if task.parts else self._schedule.steps
        elif task.kind in (Kind.DENOISE, Kind.COMMIT):
            self._note("denoise", 1, seconds)
        if task.kind is not Kind.DECODE:  # the decoding lane notes its own time
            self._timeline.note(task.kind, seconds)
        self._report(task.kind)

    def _decoded(self, latent_frames: int, seconds: float) -> None:
        self._note("decode", latent_frames, seconds)
        self._timeline.note("decode", seconds)

    def _write(self, frames: np.ndarray) -> None:
        if self._total_frames is not None:
            frames = frames[: self._total_frames - self._frames]
        if len(frames) == 0:
            return
        if self._live is not None:
            self._live.made(len(frames))
        start = time.monotonic()
        self._sink.write(frames)
        seconds = time.monotonic() - start
        self._frames += len(frames)
        self._note("write", len(frames), seconds)
        self._timeline.note("write", seconds)
        name = f"write of {len(frames)} frames"
        stop = start + seconds
        self._record(Action(0, Activity.COMPUTE, name, start, stop, lane="write"))
        self._report("write")

    def _note(self, lane: str, units: float, seconds: float) -> None:
        with self._lock:
            self._forecast.note(lane, units, seconds)

    def _report(self, stage: str) -> None:
        with self._lock:
            elapsed = self._timeline.elapsed
            progress = Progress(
                stage=stage,
                block=self._block,
                blocks=self._schedule.blocks,
                frames=self._frames,
                total_frames=self._total_frames,
                frames_per_second=self._frames / elapsed,
                elapsed=elapsed,
                seconds_left=self._forecast.seconds_left() if self._forecast.work else None,
            )
            self._on_progress(progress)
