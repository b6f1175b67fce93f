"""A short video of random weights, made as runs make theirs, to be timed.

What its launches take besides the model's kernels is what the host does for each of them: samplers,
caches, noise, the journal. What exchanges take besides their bytes is packing, posting, and waking
up who waits. And decoding beside shows how much two lanes of one worker get in each other's way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter

import torch

from longtake.parallel.mesh import Mesh
from longtake.runtime.calibration_scene import Scene
from longtake.runtime.journal import Journal
from longtake.runtime.member import Member
from longtake.runtime.noise import SeededNoise
from longtake.runtime.samplers import Solver
from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler.cluster import Cluster
from longtake.scheduler.costs import Costs
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.plan import EVALUATIONS, Plan
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.simulator_efforts import ClusterEfforts
from longtake.scheduler.strategies.causal import Causal

STRATEGY = Causal(Retention(12, 3, Positions.RELATIVE, recache=False))
BLOCKS, STEPS, FPS = 4, 4, 16
REPEATS = 3


class Rehearsal:
    """All workers of a mesh make the same, at the same times."""

    def __init__(self, scene: Scene, transformer: WanTransformer) -> None:
        self._scene, self._transformer = scene, transformer
        self.spec = replace(scene.spec, layers=len(transformer.module.blocks))
        seconds = self.spec.pixel_frames(BLOCKS * self.spec.block_frames) / FPS
        cue = Cue(0.0, "anything")
        self.request = Request((cue,), seconds, scene.height, scene.width, FPS)

    def walk(self, mesh: Mesh, meet: Callable[[], None]) -> float:
        """Seconds of a whole walk without decoding, the median of some after one in vain."""
        took = []
        for _ in range(1 + REPEATS):
            with TemporaryDirectory() as folder:
                meet()
                took.append(self._walk(mesh, Path(folder)))
        return median(took[1:])

    def _walk(self, mesh: Mesh, folder: Path) -> float:
        spec, device = self.spec, self._scene.device
        text = (spec.text_tokens, spec.text.width)
        sampler = Solver("FlowMatchEulerDiscreteScheduler", STEPS, {"shift": 3.0}, device)
        with closing(Journal.create(folder / "run", {})) as journal:
            member = Member(
                self._transformer,
                self._schedule(),
                sampler,
                SeededNoise(0),
                mesh,
                text,
                (lambda prompt: torch.zeros(1, *text)) if mesh.rank == 0 else None,
                journal if mesh.rank == 0 else None,
            )
            start = perf_counter()
            member.run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return perf_counter() - start

    def _schedule(self) -> Schedule:
        return Schedule(STRATEGY, self.request, self.spec, STEPS)

    def expected(self, cluster: Cluster, degrees: Degrees) -> tuple[float, int, int]:
        """Seconds of a walk by what is known of a cluster; its launches, and rank 0's exchanges."""
        itemsize = self._scene.dtype.itemsize
        costs = Costs(self.spec, self.request, degrees, cluster, itemsize, STRATEGY)
        plan = Plan(degrees)
        efforts = ClusterEfforts(plan, costs, cluster)
        seconds, launches, exchanges = 0.0, 0, 0
        for part in plan.parts(self._schedule()):
            if part.kind in EVALUATIONS:
                effort = efforts.effort(part)
                seconds += effort.exchange + max(effort.compute, effort.beside)
                launches += 1
                exchanges += sum(each.messages for each in costs.exchanges(part, 0))
        return seconds, launches, exchanges


class Beside:
    """Does something again and again in a thread, and counts how often."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act, self._over = act, Event()
        self._thread = Thread(target=self._run, name="decode", daemon=True)
        self.took: list[float] = []

    def _run(self) -> None:
        while not self._over.is_set():
            start = perf_counter()
            self._act()
            self.took.append(perf_counter() - start)

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
