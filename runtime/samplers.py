"""Noise levels and solvers. diffusers does the mathematics of its own; few-step re-noising is
ours."""

from __future__ import annotations

import copy
import inspect
import io
from dataclasses import dataclass
from typing import Any, Protocol

import diffusers
import torch
from torch import Tensor

from longtake.runtime.noise import Noise
from longtake.scheduler.errors import UserError

TRAINING_STEPS = 1000


class BlockSampler(Protocol):
    """The solver of one block, with whatever it remembers between steps."""

    def step(self, step: int, x: Tensor, flow: Tensor) -> Tensor:
        """From noise level `step` to the next: latents and the predicted flow, same shapes."""
        ...

    def state(self) -> Tensor:
        """What it remembers, as bytes, uint8."""
        ...

    def resume(self, state: Tensor) -> None:
        """Remember what another solver of the same block did."""
        ...


class Sampler(Protocol):
    """Makes block samplers. `timesteps[s]` is what the model is told at step s."""

    @property
    def timesteps(self) -> tuple[float, ...]:
        """One for each step, noisiest first."""
        ...

    def begin(self, block: int, noise: Noise) -> BlockSampler:
        """The solver of a block."""
        ...

    def starting_at(self, timestep: float) -> Sampler:
        """As many steps, the first of which is at another level."""
        ...


def warped_sigmas(shift: float) -> Tensor:
    """Noise levels of the flow-matching training schedule, noisiest first, float64, length 1000.

    Sigma runs from 1 towards 0 in equal steps that stop one short of 0, then is shifted towards
    noise: sigma' = shift * sigma / (1 + (shift - 1) * sigma).
    """
    sigmas = torch.linspace(1.0, 0.0, TRAINING_STEPS + 1, dtype=torch.float64)[:-1]
    return shift * sigmas / (1 + (shift - 1) * sigmas)


@dataclass(frozen=True)
class FewStep:
    """Self Forcing's sampler: predict the clean block, add fresh noise of the next level.

    `steps` are training timesteps from 1000 down; with `warp` they index the shifted schedule
    (arXiv 2506.08009, and the released code).
    """

    steps: tuple[float, ...]
    shift: float
    warp: bool = True

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or not falling or not 0 < self.steps[-1] <= self.steps[0] <= 1000:
            raise UserError(
                f"denoising steps must fall strictly within 1000 .. 1, got {list(self.steps)}"
            )

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Warped timesteps, noisiest first."""
        if not self.warp:
            return self.steps
        # The released code looks timesteps up in float32.
        table = torch.cat([(warped_sigmas(self.shift) * TRAINING_STEPS).float(), torch.zeros(1)])
        return tuple(table[TRAINING_STEPS - int(step)].item() for step in self.steps)

    def begin(self, block: int, noise: Noise) -> BlockSampler:
        """The sampler of one block; it draws its noise from `noise`."""
        table = warped_sigmas(self.shift)
        nearest = [(table * TRAINING_STEPS - t).abs().argmin() for t in self.timesteps]
        return _FewStepBlock(block, noise, [table[i].item() for i in nearest])

    def starting_at(self, timestep: float) -> FewStep:
        """Only the first step changes.

        Raises:
            UserError: the second one is not lower.
        """
        if self.timesteps[1:] and timestep <= self.timesteps[1]:
            raise UserError(
                f"a first step at {timestep:g} must be above the second one, which is at "
                f"{self.timesteps[1]:g}; set sampler.steps lower, or strategy.noise_scale higher"
            )
        return FewStep((timestep, *self.timesteps[1:]), self.shift, warp=False)


@dataclass(frozen=True)
class _FewStepBlock:
    block: int
    noise: Noise
    sigmas: list[float]

    def step(self, step: int, x: Tensor, flow: Tensor) -> Tensor:
        clean = (x.double() - self.sigmas[step] * flow.double()).to(x.dtype)
        if step == len(self.sigmas) - 1:
            return clean
        fresh = self.noise.renoise(self.block, step, tuple(x.shape)).to(x.device, x.dtype)
        sigma = self.sigmas[step + 1]
        return (1 - sigma) * clean + sigma * fresh

    def state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def resume(self, state: Tensor) -> None:
        """It remembers nothing."""


class Solver:
    """Any flow-matching scheduler of diffusers, by class name; every block gets its own state."""

    def __init__(
        self, name: str, steps: int, options: dict[str, Any], device: torch.device
    ) -> None:
        kind = getattr(diffusers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
            raise UserError(
                f"diffusers has no scheduler {name!r}; legal ones include "
                "FlowMatchEulerDiscreteScheduler and UniPCMultistepScheduler"
            )
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        known = set(inspect.signature(kind).parameters)
        unknown = sorted(set(options) - known)
        if unknown:
            raise UserError(
                f"{name} has no options {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        self._scheduler = kind(**options)
        predicts = self._scheduler.config.get("prediction_type", "flow_prediction")
        if predicts != "flow_prediction":
            raise UserError(
                f"{name} expects the model to predict {predicts}, but Wan predicts flow; set "
                "prediction_type to flow_prediction and use_flow_sigmas to true, or take another"
            )
        self._scheduler.set_timesteps(steps, device=device)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the model is told, noisiest first."""
        return tuple(float(t) for t in self._scheduler.timesteps)

    def begin(self, block: int, noise: Noise) -> BlockSampler:
        """A fresh copy of the solver."""
        scheduler = copy.deepcopy(self._scheduler)
        scheduler.set_begin_index(0)  # spares a look-up that waits for the device
        return _SolverBlock(scheduler)

    def starting_at(self, timestep: float) -> Solver:
        """All levels are lowered by the same factor."""
        late = copy.deepcopy(self)
        lower = timestep / late.timesteps[0]
        late._scheduler.timesteps = late._scheduler.timesteps * lower
        late._scheduler.sigmas = late._scheduler.sigmas * lower
        return late


@dataclass(frozen=True)
class _SolverBlock:
    scheduler: Any

    def step(self, step: int, x: Tensor, flow: Tensor) -> Tensor:
        flow = flow.to(x.dtype)  # some schedulers return the latents in the dtype of the flow
        moved: Tensor = self.scheduler.step(flow, self.scheduler.timesteps[step], x).prev_sample
        return moved

    def state(self) -> Tensor:
        memory = {name: kept for name, kept in vars(self.scheduler).items() if _is_plain(kept)}
        packed = io.BytesIO()
        torch.save(memory, packed)
        return torch.frombuffer(bytearray(packed.getvalue()), dtype=torch.uint8)

    def resume(self, state: Tensor) -> None:
        device = self.scheduler.timesteps.device
        packed = io.BytesIO(state.cpu().numpy().tobytes())
        vars(self.scheduler).update(torch.load(packed, map_location=device, weights_only=True))


def _is_plain(kept: object) -> bool:
    """Whether it is a tensor, a number, a text or None, or a list of such."""
    if isinstance(kept, list):
        return all(map(_is_plain, kept))
    return kept is None or isinstance(kept, Tensor | int | float | str)
