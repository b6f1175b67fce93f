"""One worker's part in a run, whatever its rank: its share of a lane, walked with the others."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from longtake.parallel.agreement import Agreement
from longtake.parallel.balance import Balance
from longtake.parallel.mesh import Mesh
from longtake.runtime.causal_windows import causal_window
from longtake.runtime.decoding import DecodeWorker, warm_up
from longtake.runtime.launch_worker import STATE_EVERY, LaunchWorker
from longtake.runtime.memory import check_memory, worker_needs
from longtake.runtime.noise import Noise
from longtake.runtime.samplers import Sampler
from longtake.runtime.shared_decoder import make_decoder
from longtake.runtime.source import NoiseSource, Source
from longtake.runtime.timed_worker import TimedWorker
from longtake.runtime.wan_transformer import WanTransformer
from longtake.runtime.workers import (
    BlockStore,
    DenoiseWorker,
    branch_span,
    make_launches,
)
from longtake.scheduler.decode_degrees import decode_piece
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.loop import Worker, drive
from longtake.scheduler.plan import Plan
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Needs, Schedule, Script, Verdict
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import NO_PROMPT, Task
from longtake.scheduler.timeline import Record, forget

logger = logging.getLogger(__name__)


class NoStore:
    """Keeps no block: for runs without a journal, and for all ranks but 0."""

    def read(self, block: int) -> Tensor | None:
        """Always None."""
        return None

    def write(self, block: int, latents: Tensor) -> None:
        """Forget it."""

    def read_state(self) -> None:
        """Always None."""

    def write_state(self, tick: int, tensors: dict[str, Tensor]) -> None:
        """Forget it."""


class Work(Protocol):
    """What is to be made, be it one video or streams that share launches."""

    @property
    def request(self) -> Request:
        """Its size, rate and guidance."""
        ...

    @property
    def spec(self) -> ModelSpec:
        """The model's."""
        ...

    @property
    def strategy(self) -> Needs:
        """What it needs at once."""
        ...

    @property
    def script(self) -> Script:
        """Hears how like frames are."""
        ...


class AnyMember(ABC):
    """A worker of a run. Rank 0 has `encode` and the store, and decides; the others follow."""

    def __init__(
        self,
        transformer: WanTransformer,
        work: Work,
        sampler: Sampler,
        noise: Noise,
        mesh: Mesh,
        text_shape: tuple[int, int],
        encode: Callable[[str], Tensor] | None,
        store: BlockStore | None,
        context_timestep: float,
        record: Record,
        state_every: float,
        source: Source | None,
        balance: Balance | None = None,
    ) -> None:
        self._work, self._mesh, self._encode = work, mesh, encode
        self._transformer, self._text_shape, self._balance = transformer, text_shape, balance
        self.record = record if balance is None else balance.note
        self._store: BlockStore = NoStore() if store is None else store
        self._source: Source = NoiseSource(noise) if source is None else source
        request, spec = work.request, work.spec
        branches = 2 if request.guidance > 1 else 1
        self.plan = Plan(mesh.degrees, branches)
        itemsize = transformer.dtype.itemsize
        needs = worker_needs(spec, work.strategy, request, itemsize, mesh.degrees)
        check_memory(needs[mesh.rank].run, transformer.device, request)
        self.worker = self._make_worker(sampler, noise, context_timestep, state_every)

    def _make_worker(
        self, sampler: Sampler, noise: Noise, context_timestep: float, state_every: float
    ) -> DenoiseWorker:
        work, transformer, mesh = self._work, self._transformer, self._mesh
        request, spec, strategy = work.request, work.spec, work.strategy
        shared: dict[str, Any] = {
            "transformer": transformer,
            "encode_text": self._encode_text,
            "request": request,
            "spec": spec,
            "sampler": sampler,
            "noise": noise,
            "store": self._store,
            "mesh": mesh,
            "context_timestep": context_timestep,
        }
        if isinstance(strategy, Causal):
            window = causal_window(transformer, spec, strategy, request, mesh)
            recache = strategy.retention.recache
            history = strategy.cached_frames(request, spec) if recache else 0
            return DenoiseWorker(**shared, window=window, history=history)
        if isinstance(strategy, Bidirectional):
            return DenoiseWorker(**shared, window=None, history=0)
        frames = strategy.cached_frames(request, spec)
        launches = make_launches(transformer, spec, frames, request, mesh)
        worker = LaunchWorker(
            **shared, launches=launches, state_every=state_every, source=self._source
        )
        work.script.on_likeness = worker.likeness
        if self._balance is not None:
            worker.moved = self._balance.moved
        return worker

    def run(
        self,
        beside: Mapping[str, Worker] | None = None,
        watch: Callable[[Iterator[Task]], Iterator[Task]] = lambda tasks: tasks,
        walk: AbstractContextManager[None] | None = None,
    ) -> None:
        """Walk the whole schedule. `beside` are the workers of other lanes in this process;
        `watch` sees the tasks go by; `walk` is entered for as long as it takes."""
        tasks = self._tasks()
        lane = self.plan.lane_of_stage(self._mesh.place.stage)
        ahead = 1 if self._mesh.degrees.stages > 1 else 0
        with walk or nullcontext(), self._timed() as worker:
            drive(watch(tasks), self.plan, {lane: worker, **(beside or {})}, ahead)
        self.worker.flush()

    @abstractmethod
    def _tasks(self) -> Iterator[Task]:
        """All tasks, as all workers have agreed upon them."""

    @abstractmethod
    def _texts(self, cue: int) -> tuple[str, str]:
        """What guidance leads away from under a cue, and its prompt."""

    def _timed(self) -> AbstractContextManager[Worker]:
        if self.record is forget:
            return nullcontext(self.worker)
        mesh, device = self._mesh, self._transformer.device
        return TimedWorker(self.worker, self.record, mesh.rank, mesh.degrees.stages > 1, device)

    def _encode_text(self, cue: int) -> Tensor:
        """Rank 0 alone has a text encoder; every worker takes its own branches."""
        request, guided = self._work.request, self._work.request.guidance > 1
        if self._encode is not None:
            texts = ("", "") if cue == NO_PROMPT else self._texts(cue)
            text = torch.cat([self._encode(text) for text in (texts if guided else texts[1:])])
            text = text.to(self._transformer.device, self._transformer.dtype)
        else:
            text = torch.zeros(
                (2 if guided else 1, *self._text_shape),
                device=self._transformer.device,
                dtype=self._transformer.dtype,
            )
        own = branch_span(self._mesh, request.guidance)
        return self._mesh.world.broadcast(text, 0)[own.start : own.stop]


class Member(AnyMember):
    """A worker of one video."""

    def __init__(
        self,
        transformer: WanTransformer,
        schedule: Schedule,
        sampler: Sampler,
        noise: Noise,
        mesh: Mesh,
        text_shape: tuple[int, int],
        encode: Callable[[str], Tensor] | None = None,
        store: BlockStore | None = None,
        context_timestep: float = 0.0,
        record: Record = forget,
        state_every: float = STATE_EVERY,
        source: Source | None = None,
        balance: Balance | None = None,
    ) -> None:
        """`encode` gives (1, *text_shape) for a prompt, as (tokens, width); `record` hears of all
        tasks, `forget` keeps them untimed; `state_every` and `source` are of
        `LaunchWorker`; `balance` hears of tasks too, and says when layers move."""
        super().__init__(
            transformer,
            schedule,
            sampler,
            noise,
            mesh,
            text_shape,
            encode,
            store,
            context_timestep,
            record,
            state_every,
            source,
            balance,
        )
        self._schedule = schedule

    def _tasks(self) -> Iterator[Task]:
        decide = self._decide if self._mesh.rank == 0 else None
        return self._schedule.tasks(Agreement(self._mesh, self._schedule, decide))

    def _texts(self, cue: int) -> tuple[str, str]:
        return self._schedule.request.negative, self._schedule.script.cues[cue].text

    def decode_worker(
        self,
        vae: AutoencoderKLWan,
        deliver: Callable[[np.ndarray], None] = lambda frames: None,
        on_decoded: Callable[[int, float], None] = lambda frames, seconds: None,
    ) -> DecodeWorker:
        """This worker's share of the decoding lane; see `DecodeWorker`."""
        return DecodeWorker(
            make_decoder(vae, self._mesh, "decode"),
            self._finished,
            decode_piece(self._schedule.spec),
            self._mesh.device,
            self._mesh.rank,
            self.record,
            deliver,
            on_decoded,
        )

    def warm_decoder(self, vae: AutoencoderKLWan) -> float:
        """Decode nothing together with all others that decode, before the walk; returns the seconds
        that a latent frame takes."""
        nothing = torch.zeros(self._shape(1), device=self._transformer.device)
        return warm_up(make_decoder(vae, self._mesh, "warm-up"), nothing)

    def _finished(self, task: Task) -> Tensor:
        """The latents that a DECODE is about; only rank 0's are read."""
        if self._mesh.rank == 0:
            return self.worker.take(task.block)
        shape = self._shape(len(task.frames))
        return torch.empty((), device=self._transformer.device).expand(shape)

    def _shape(self, frames: int) -> tuple[int, ...]:
        request, spec = self._schedule.request, self._schedule.spec
        rows, columns = (side * spec.patch for side in spec.grid(request.height, request.width))
        return (1, spec.latent_channels, frames, rows, columns)

    def _decide(self, block: int) -> Verdict:
        go = not self._schedule.stopped and self._source.ready(block)
        if isinstance(self.worker, LaunchWorker):
            layers = None if self._balance is None else self._balance.propose()
            go = go and self._schedule.await_grant(block)
            return Verdict(go, until=self._until, layers=layers)
        kept = go and self._store.read(block) is not None
        return Verdict(go and (kept or self._schedule.await_grant(block)), kept)

    @cached_property
    def _until(self) -> int:
        """Up to which tick an earlier run came, where launches can't be told apart by block.

        -1 if a block that was finished by then is lost: those that were in the making beside it
        are needed to make it again.
        """
        assert isinstance(self.worker, LaunchWorker)
        tick = self.worker.known_until()
        lost = [b for b in sorted(self._schedule.finished(tick)) if self._store.read(b) is None]
        if lost:
            logger.warning("without block %d, the video is made again from its start", lost[0])
        return -1 if lost else tick
