"""MemFlow: what it is where nothing is forgotten; workers and resumed runs keep the same frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.distributed.walks import Walk, alone_made, check_on_workers, check_resume, distance

from longtake.scheduler.bank_retention import BankRetention
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.retention import Retention
from longtake.scheduler.strategies.causal import Causal

MEMFLOW = Walk(Causal(BankRetention(7, 1, 2, 1)), frames=14, cues=(0, 8))
ACTIVE = replace(MEMFLOW, strategy=Causal(BankRetention(7, 1, 2, 1, active=2)))


def test_06_a_window_over_everything_is_causal_to_the_bit() -> None:
    plain = replace(MEMFLOW, strategy=Causal(Retention(None)))
    whole = replace(MEMFLOW, strategy=Causal(BankRetention(17, 1, 2, 1)))
    assert torch.equal(alone_made(whole), alone_made(plain))
    assert distance(alone_made(MEMFLOW), alone_made(plain)) > 1e-3


def test_all_frames_active_is_all_frames_seen() -> None:
    every = replace(MEMFLOW, strategy=Causal(BankRetention(7, 1, 2, 1, active=3)))
    assert torch.equal(alone_made(every), alone_made(MEMFLOW))
    assert distance(alone_made(ACTIVE), alone_made(MEMFLOW)) > 1e-3


@pytest.mark.parametrize(
    ("walk", "degrees"),
    [
        (MEMFLOW, Degrees(stages=2)),
        (ACTIVE, Degrees(ring=2)),
        (ACTIVE, Degrees(ulysses=3)),
        (ACTIVE, Degrees(cfg=2, ring=2)),
        (replace(ACTIVE, grid=(1, 3)), Degrees(ring=2, ulysses=2)),
    ],
    ids=lambda case: case.describe() if isinstance(case, Degrees) else "",
)
def test_workers_keep_what_one_process_keeps(workers: Any, walk: Walk, degrees: Degrees) -> None:
    guidance = 3.0 if degrees.cfg > 1 or degrees.stages > 1 else 1.0
    check_on_workers(workers, replace(walk, guidance=guidance), degrees)


@pytest.mark.parametrize("breaks_after", [3, 6])
def test_killed_run_goes_on_to_the_same_bits(breaks_after: int) -> None:
    check_resume(replace(ACTIVE, sampler="unipc"), breaks_after)


def test_15_a_switch_of_prompt_writes_the_window_again_but_not_the_past() -> None:
    """Frames made before the switch are the same; those after it depend on the recache."""
    without = replace(MEMFLOW, strategy=Causal(BankRetention(7, 1, 2, 1, recache=False)))
    made, left = alone_made(MEMFLOW), alone_made(without)
    assert torch.equal(made[:, :, :8], left[:, :, :8])
    assert distance(made[:, :, 8:], left[:, :, 8:]) > 1e-4
