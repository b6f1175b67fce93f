"""Noise levels and solvers, against the released lists and against diffusers' own stepping."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from longtake.runtime.noise import SeededNoise
from longtake.runtime.samplers import FewStep, Solver, warped_sigmas
from longtake.scheduler.errors import UserError

CPU = torch.device("cpu")
SHAPE = (1, 4, 3, 4, 4)
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SOLVERS = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("UniPCMultistepScheduler", UNIPC),
]


def random(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("shift", "steps", "expected"),
    [
        (5.0, (1000, 750, 500, 250), (1000, 937.5, 833.33333, 625)),
        (8.0, (1000, 750, 500, 250), (1000, 960, 888.88889, 727.27273)),
        (5.0, (1000, 800, 600, 400, 200), (1000, 952.38095, 882.35294, 769.23077, 555.55556)),
    ],
)
def test_11_steps_are_warped_as_released(
    shift: float, steps: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    assert FewStep(steps, shift).timesteps == pytest.approx(expected, abs=1e-3)
    assert FewStep(steps, shift, warp=False).timesteps == steps


def test_the_shift_moves_levels_towards_noise() -> None:
    plain, shifted = warped_sigmas(1.0), warped_sigmas(5.0)
    assert plain[0] == shifted[0] == 1
    assert plain[-1].item() == pytest.approx(1e-3)
    assert (shifted[1:] > plain[1:]).all()
    assert shifted[500].item() == pytest.approx(5 * 0.5 / (1 + 4 * 0.5))


def test_11_a_perfect_model_is_followed_to_its_clean_block() -> None:
    sampler, noise, clean = FewStep((1000, 750, 500, 250), 5.0), SeededNoise(0), random(1)
    block = sampler.begin(3, noise)
    eps = noise.initial(3, SHAPE)
    x = eps
    for step, timestep in enumerate(sampler.timesteps):
        sigma = timestep / 1000
        torch.testing.assert_close(x, (1 - sigma) * clean + sigma * eps, atol=1e-5, rtol=0)
        x = block.step(step, x, eps - clean)
        eps = noise.renoise(3, step, SHAPE)
    torch.testing.assert_close(x, clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "steps", [(), (500, 500), (250, 500), (1001, 500), (500, 0), (500, -1), (float("nan"),)]
)
def test_steps_must_fall(steps: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"^denoising steps must fall strictly within 1000 \.\. 1"):
        FewStep(steps, 5.0)


@pytest.mark.parametrize(("name", "options"), SOLVERS)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_solver_steps_as_diffusers_does(name: str, options: dict[str, Any], steps: int) -> None:
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps)
    solver = Solver(name, steps, options, CPU)
    assert solver.timesteps == tuple(float(t) for t in scheduler.timesteps)
    ours = theirs = random(0)
    block = solver.begin(0, SeededNoise(0))
    for index, timestep in enumerate(scheduler.timesteps):
        flow = random(index + 1)
        ours = block.step(index, ours, flow)
        theirs = scheduler.step(flow, timestep, theirs).prev_sample
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("name", "options"), SOLVERS)
def test_dual_14_blocks_do_not_share_what_a_solver_remembers(
    name: str, options: dict[str, Any]
) -> None:
    solver = Solver(name, 4, options, CPU)
    flows = {block: [random(9 * block + i) for i in range(7)] for block in (0, 1)}

    def step(block: int, index: int, x: Tensor) -> Tensor:
        return samplers[block].step(index, x, flows[block][index])

    alone = {}
    for block in (0, 1):
        samplers = {block: solver.begin(block, SeededNoise(0))}
        alone[block] = random(block)
        for index in range(len(solver.timesteps)):
            alone[block] = step(block, index, alone[block])
    samplers = {block: solver.begin(block, SeededNoise(0)) for block in (0, 1)}
    mixed = {block: random(block) for block in (0, 1)}
    for index in range(len(solver.timesteps)):
        mixed = {block: step(block, index, mixed[block]) for block in (0, 1)}
    assert all(torch.equal(mixed[block], alone[block]) for block in (0, 1))


@pytest.mark.parametrize(("name", "options"), SOLVERS)
def test_latents_stay_in_float32_whatever_the_model_computes_in(
    name: str, options: dict[str, Any]
) -> None:
    x = (
        Solver(name, 3, options, CPU)
        .begin(0, SeededNoise(0))
        .step(0, random(0), random(1, torch.bfloat16))
    )
    assert x.dtype == torch.float32
    few = FewStep((1000, 500), 5.0).begin(0, SeededNoise(0))
    assert few.step(0, random(0), random(1, torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "steps", "options", "message"),
    [
        ("Euler", 4, {}, r"^diffusers has no scheduler 'Euler'; legal ones include FlowMatchEuler"),
        ("utils", 4, {}, r"^diffusers has no scheduler 'utils'"),
        ("WanPipeline", 4, {}, r"^diffusers has no scheduler 'WanPipeline'"),
        ("UniPCMultistepScheduler", 0, UNIPC, r"^steps must be at least 1, got 0$"),
        (
            "FlowMatchEulerDiscreteScheduler",
            4,
            {"shfit": 3.0},
            r"^FlowMatchEulerDiscreteScheduler has no options shfit; it has .*\bshift\b",
        ),
        (
            "UniPCMultistepScheduler",
            4,
            {},
            r"^UniPCMultistepScheduler expects the model to predict epsilon, .* Wan predicts flow",
        ),
    ],
)
def test_mistakes_are_told(name: str, steps: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Solver(name, steps, options, CPU)
