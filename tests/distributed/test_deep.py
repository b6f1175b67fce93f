"""Deep Forcing: what it is where nothing is chosen; workers, and resumed runs, choose the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.distributed.walks import (
    Blocks,
    Walk,
    alone_made,
    check_on_workers,
    check_resume,
    distance,
    take,
)

from longtake.scheduler.deep_retention import DeepRetention
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.strategies.causal import Causal

DEEP = Walk(Causal(DeepRetention(8, 7, 2, 3)), frames=12, cues=(0, 8))


def test_06_a_window_over_everything_is_causal_to_the_bit() -> None:
    plain = replace(DEEP, strategy=Causal(Retention(None, recache=False)))
    whole = replace(DEEP, strategy=Causal(DeepRetention(12, 10, 2, 4)))
    assert torch.equal(alone_made(whole), alone_made(plain))
    assert distance(alone_made(DEEP), alone_made(plain)) > 1e-3


def test_09_without_chosen_tokens_it_is_a_rebased_sink() -> None:
    """So the sink stands right before the window, however long the video is."""
    deep = replace(DEEP, strategy=Causal(DeepRetention(6, 6, 2, 4)), frames=16)
    rebased = Retention(6, 2, Positions.SINK_REBASED, recache=False)
    assert distance(alone_made(deep), alone_made(replace(deep, strategy=Causal(rebased)))) < 2e-6


@pytest.mark.parametrize(
    "degrees",
    [
        Degrees(ring=2),
        Degrees(ulysses=3),
        Degrees(ring=2, ulysses=2),
        Degrees(stages=2),
        Degrees(cfg=2, ring=2),
    ],
    ids=Degrees.describe,
)
def test_workers_choose_what_one_process_chooses(workers: Any, degrees: Degrees) -> None:
    guidance = 3.0 if degrees.cfg > 1 or degrees.stages > 1 else 1.0
    check_on_workers(workers, replace(DEEP, guidance=guidance), degrees)


def test_23_a_worker_may_have_no_token_of_a_frame(workers: Any) -> None:
    check_on_workers(workers, replace(DEEP, grid=(1, 3)), Degrees(ring=4))


@pytest.mark.parametrize("breaks_after", [3, 5])
def test_killed_run_goes_on_to_the_same_bits(breaks_after: int) -> None:
    """Though what was chosen depends on noisy queries."""
    check_resume(replace(DEEP, sampler="unipc"), breaks_after)


def test_29_a_stopped_run_has_made_whole_blocks_of_the_same_video() -> None:
    schedule = DEEP.schedule()

    class Stopper(Blocks):
        def write(self, block: int, latents: torch.Tensor) -> None:
            super().write(block, latents)
            if block == 4:
                schedule.stop()

    blocks = Stopper()

    class Stopped(Walk):
        def schedule(self) -> Any:
            return schedule

    take(Stopped(DEEP.strategy, frames=12, cues=(0, 8)), blocks=blocks)
    assert sorted(blocks.made) == [0, 1, 2, 3, 4]
    assert torch.equal(blocks.latents, alone_made(DEEP)[:, :, :10])
