"""Strategies that must agree where they compute the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from longtake.runtime.engine import Engine
from longtake.runtime.model import Model
from longtake.runtime.noise import SeededNoise
from longtake.runtime.samplers import Solver
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule, Strategy
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.causal import Causal


class Frames(list[np.ndarray]):
    """A sink."""

    def write(self, frames: np.ndarray) -> None:
        self.append(frames)


def frames_of(model: Model, strategy: Strategy, guidance: float = 1.0) -> np.ndarray:
    """Three blocks of three latent frames, or one of nine."""
    sampler = Solver("FlowMatchEulerDiscreteScheduler", 3, {"shift": 3.0}, torch.device("cpu"))
    request = Request((Cue(0, "a red circle"),), 33 / 16, 32, 32, 16, 5, guidance)
    frames = Frames()
    schedule = Schedule(strategy, request, model.spec, 3)
    Engine(model, schedule, sampler, SeededNoise(5), frames).run()
    return np.concatenate(frames).astype(int)


@pytest.mark.parametrize("positions", Positions)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_01_one_causal_block_is_joint(
    tiny_model: Model, positions: Positions, guidance: float
) -> None:
    """Without a past, a block over the cache is what all frames jointly are."""
    model = replace(tiny_model, spec=replace(tiny_model.spec, block_frames=9))
    causal = frames_of(model, Causal(Retention(9, 0, positions)), guidance)
    assert np.abs(causal - frames_of(model, Bidirectional(), guidance)).max() <= 1


@pytest.mark.parametrize("positions", Positions)
def test_06_a_window_over_everything_forgets_nothing(
    tiny_model: Model, positions: Positions
) -> None:
    whole = frames_of(tiny_model, Causal(Retention(None)))
    for retention in (Retention(9, 0, positions), Retention(40, 3, positions)):
        assert np.abs(frames_of(tiny_model, Causal(retention)) - whole).max() <= 1
    assert np.abs(frames_of(tiny_model, Causal(Retention(6))) - whole).max() > 1
