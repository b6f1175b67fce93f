"""Linear attention on workers, and resumed: sums over shares are the sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.distributed.walks import Walk, check_on_workers, check_resume

from longtake.scheduler.constant_state import ConstantState
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.strategies.causal import Causal

LINEAR = Walk(Causal(ConstantState()), cues=(0, 4))


@pytest.mark.parametrize(
    "degrees",
    [Degrees(ring=2, ulysses=2), Degrees(stages=2), Degrees(ulysses=3)],
    ids=Degrees.describe,
)
def test_workers_make_what_one_process_makes(workers: Any, degrees: Degrees) -> None:
    guidance = 3.0 if degrees.stages > 1 else 1.0
    check_on_workers(workers, replace(LINEAR, guidance=guidance), degrees)


def test_killed_run_goes_on_to_the_same_bits() -> None:
    check_resume(replace(LINEAR, sampler="unipc"), 3)
