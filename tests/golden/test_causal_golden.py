"""Self Forcing and LongLive, to the digits of their published code, through the normal strategy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.scheduler.retention import Positions

SYSTEMS = ("self_forcing", "longlive")
TOLERANCE = 2e-4
RunGolden = Callable[[Path, Positions], Any]


def test_agrees_with_the_published_code(golden_file: Path, run_golden: RunGolden) -> None:
    run = run_golden(golden_file, Positions.ABSOLUTE)
    expected = run.case.tensors
    torch.testing.assert_close(
        torch.tensor(run.timesteps), expected["denoising_timesteps"].float(), atol=1e-3, rtol=0
    )
    assert largest(run.latents - expected["latents"]) < TOLERANCE
    if run.case["system"] == "self_forcing":
        assert largest(torch.stack(run.flow) - expected["flow"]) < TOLERANCE
        assert largest(torch.stack(run.x0) - expected["x0"]) < TOLERANCE


@pytest.mark.parametrize("positions", [Positions.RELATIVE, Positions.SINK_REBASED])
def test_how_positions_are_counted_matters_only_across_a_gap(
    positions: Positions, golden_file: Path, run_golden: RunGolden
) -> None:
    """Attention sees distances alone, and only forgotten frames change a distance."""
    run = run_golden(golden_file, positions)
    change = largest(run.latents - run.case.tensors["latents"])
    assert change > 100 * TOLERANCE if run.case.gapped else change < TOLERANCE


def test_relative_positions_rebase_the_sink(golden_file: Path, run_golden: RunGolden) -> None:
    """Counting in the window puts the sink right before it, as rebasing does."""
    relative = run_golden(golden_file, Positions.RELATIVE).latents
    assert largest(relative - run_golden(golden_file, Positions.SINK_REBASED).latents) < TOLERANCE


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()
