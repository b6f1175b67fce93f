"""Switches, stops and kept blocks reach all workers at the same block."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from longtake.parallel.agreement import Agreement
from longtake.parallel.mesh import Rendezvous, alone, open_mesh
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Retention
from longtake.scheduler.schedule import Schedule, Verdict
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind, Task

CPU = torch.device("cpu")
BLOCKS = 6


def make_schedule() -> Schedule:
    """Six blocks of two latent frames; the planned cue changes at block 3."""
    spec = ModelSpec(
        layers=2,
        heads=2,
        head_dim=16,
        ffn_dim=64,
        latent_channels=4,
        patch=2,
        rotary_rows=1024,
        block_frames=2,
    )
    cues = (Cue(0.0, "first"), Cue(21 / 8, "planned"))
    request = Request(cues, spec.pixel_frames(2 * BLOCKS) / 8, 32, 32, 8)
    return Schedule(Causal(Retention(window=6, sink=2, recache=True)), request, spec, steps=2)


def walk(meeting: Rendezvous, seed: int) -> tuple[list[Task], list[Cue]]:
    """The tasks and prompts that a worker sees. On rank 0 something happens meanwhile."""
    draw = random.Random(seed)
    kept = range(draw.randrange(BLOCKS))
    switches = draw.sample(range(25), 2)
    stop = draw.randrange(50)  # most runs have fewer tasks
    schedule = make_schedule()

    def decide(block: int) -> Verdict:
        go = not schedule.stopped
        return Verdict(go, kept=go and block in kept)

    tasks = []
    with open_mesh(meeting, Degrees(ring=3), CPU) as mesh:
        agreed = Agreement(mesh, schedule, decide if mesh.rank == 0 else None)
        for task in schedule.tasks(agreed):
            tasks.append(task)
            if mesh.rank == 0 and len(tasks) in switches and task.block < BLOCKS - 1:
                schedule.switch(f"by hand at {len(tasks)}")
            if mesh.rank == 0 and len(tasks) == stop:
                schedule.stop()
    return tasks, schedule.script.cues


def test_all_walk_the_same_tasks_whatever_happens(workers: Any) -> None:
    seen = set()
    for seed in range(8):
        first, *others = workers.run(3, walk, seed)
        assert others == [first, first]
        tasks, cues = first
        kinds = {block: {t.kind for t in tasks if t.block == block} for block in range(BLOCKS)}
        restored = [block for block in range(BLOCKS) if Kind.RESTORE in kinds[block]]
        made = [block for block in range(BLOCKS) if Kind.DENOISE in kinds[block]]
        done = len(restored) + len(made)
        assert [*restored, *made] == list(range(done))  # kept blocks are not denoised
        seen |= {"kept"} if restored else set()
        seen |= {"stopped"} if done < BLOCKS else {"finished"}
        seen |= {"switched"} if {task.cue for task in tasks} & set(range(2, len(cues))) else set()
    assert seen == {"kept", "stopped", "finished", "switched"}


def test_only_rank_0_decides() -> None:
    mesh = alone(CPU)
    with pytest.raises(ValueError, match="rank 0 decides, and only rank 0"):
        Agreement(mesh, make_schedule(), None)
    assert Agreement(mesh, make_schedule(), lambda block: Verdict(kept=True))(0).kept
