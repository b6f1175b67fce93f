"""Walk schedules through a denoising lane of a tiny random transformer, without text and pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.parallel.mesh import alone
from longtake.runtime.model import Model
from longtake.runtime.noise import SeededNoise
from longtake.runtime.samplers import FewStep
from longtake.runtime.workers import DenoiseWorker, make_window
from longtake.scheduler.loop import drive
from longtake.scheduler.plan import Plan
from longtake.scheduler.schedule import Schedule, Verdict
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind, Task


@dataclass
class Store:
    """Keeps finished blocks, and offers those that it holds at the start."""

    held: dict[int, Tensor] = field(default_factory=dict)
    made: dict[int, Tensor] = field(default_factory=dict)

    def read(self, block: int) -> Tensor | None:
        return self.held.get(block)

    def write(self, block: int, latents: Tensor) -> None:
        self.made[block] = latents

    @property
    def latents(self) -> Tensor:
        """All blocks made, (1, C, frames, h, w)."""
        return torch.cat([self.made[block] for block in sorted(self.made)], dim=2)


@dataclass
class Lane:
    """A denoising lane, ready to walk its schedule."""

    schedule: Schedule
    worker: DenoiseWorker
    store: Store
    window: Any

    def run(self, task: Task) -> None:
        """Do one task of the schedule, if it is this lane's."""
        if task.kind is not Kind.DECODE:
            self.worker.run(task)

    def walk(self) -> Store:
        """Do all of them, through the loop."""
        tasks = self.schedule.tasks(lambda block: Verdict(kept=block in self.store.held))
        drive(tasks, Plan(), {"denoise": self.worker})
        return self.store


MakeLane = Callable[..., Lane]


@pytest.fixture
def make_lane(tiny_model: Model) -> MakeLane:
    """Make lanes; every cue has random embeddings of its own."""

    def encode(cue: int) -> Tensor:
        return torch.randn(1, 8, 24, generator=torch.Generator().manual_seed(cue))

    def make(
        schedule: Schedule,
        window: Any = None,
        store: Store | None = None,
        sampler: FewStep | None = None,
        **changes: Any,
    ) -> Lane:
        request, spec = schedule.request, schedule.spec
        mesh = alone(torch.device("cpu"))
        guided, negative = request.guidance > 1, encode(99)
        capacity = 0
        if isinstance(schedule.strategy, Causal):
            retention = schedule.strategy.retention
            total = schedule.strategy.latent_frames(request, spec)
            capacity = retention.capacity(total)
            window = window or make_window(
                tiny_model.transformer, spec, retention, request, total, mesh
            )
        store = Store() if store is None else store
        arguments: dict[str, Any] = {
            "transformer": tiny_model.transformer,
            "encode_text": lambda cue: torch.cat([negative, encode(cue)][not guided :]),
            "request": request,
            "spec": spec,
            "mesh": mesh,
            "sampler": sampler or FewStep((1000.0, 500.0), 5.0),
            "noise": SeededNoise(request.seed),
            "store": store,
            "window": window,
            "history": capacity,
        }
        return Lane(schedule, DenoiseWorker(**arguments | changes), store, window)

    return make
