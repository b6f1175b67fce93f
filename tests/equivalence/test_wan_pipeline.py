"""The bidirectional strategy is diffusers' own WanPipeline, seen from another side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from torch import Tensor

from longtake.runtime.engine import Engine
from longtake.runtime.model import Model, ModelConfig, load_model
from longtake.runtime.noise import SeededNoise
from longtake.runtime.samplers import Solver
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.bidirectional import Bidirectional

TINYWORLD = Path(__file__).parents[2] / "models" / "tinyworld"
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SOLVERS: dict[str, tuple[type, dict[str, Any]]] = {
    "euler": (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
    "unipc": (UniPCMultistepScheduler, UNIPC),
}
TOLERANCE = 1e-4


class Frames(list[np.ndarray]):
    """A sink."""

    def write(self, frames: np.ndarray) -> None:
        self.append(frames)


class Latents(dict[int, Tensor]):
    """A store that holds nothing yet."""

    def read(self, block: int) -> Tensor | None:
        return None

    def write(self, block: int, latents: Tensor) -> None:
        self[block] = latents


def run_longtake(
    model: Model, request: Request, solver: str, steps: int
) -> tuple[Tensor, np.ndarray]:
    """Latents, and frames in [0, 255]."""
    scheduler, options = SOLVERS[solver]
    sampler = Solver(scheduler.__name__, steps, options, torch.device("cpu"))
    schedule = Schedule(Bidirectional(), request, model.spec, steps)
    frames, latents = Frames(), Latents()
    Engine(model, schedule, sampler, SeededNoise(request.seed), frames, latents).run()
    return latents[0], np.concatenate(frames)


def run_diffusers(model: Model, request: Request, solver: str, steps: int, kind: str) -> Any:
    """The pipeline on the same folder, from the same noise: latents or pixels in [0, 1]."""
    scheduler, options = SOLVERS[solver]
    pipeline = WanPipeline.from_pretrained(model.config.folder, scheduler=scheduler(**options))
    pipeline.set_progress_bar_config(disable=True)
    spec = model.spec
    frames = spec.latent_frames(request.pixel_frames)
    stride = spec.spatial_stride
    shape = (1, spec.latent_channels, frames, request.height // stride, request.width // stride)
    return pipeline(
        prompt=request.cues[0].text,
        negative_prompt=request.negative,
        height=request.height,
        width=request.width,
        num_frames=spec.pixel_frames(frames),
        num_inference_steps=steps,
        guidance_scale=request.guidance,
        latents=SeededNoise(request.seed).initial(0, shape),
        max_sequence_length=model.config.text_tokens,
        output_type=kind,
    ).frames


@pytest.mark.parametrize("steps", [3, 8])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_latents_equal(tiny_model: Model, solver: str, guidance: float, steps: int) -> None:
    cues = (Cue(0, "a red   circle &amp; a green square"),)
    request = Request(cues, 17 / 16, 32, 48, 16, 7, guidance, "a square")
    made, _ = run_longtake(tiny_model, request, solver, steps)
    expected = run_diffusers(tiny_model, request, solver, steps, "latent")
    torch.testing.assert_close(made, expected, atol=TOLERANCE, rtol=0)


def test_pixels_equal(tiny_model: Model) -> None:
    request = Request((Cue(0, "a red circle"),), 17 / 16, 32, 48, 16, seed=7)
    _, made = run_longtake(tiny_model, request, "euler", 3)
    expected = run_diffusers(tiny_model, request, "euler", 3, "np")[0]
    assert made.shape == (17, 32, 48, 3)
    assert np.abs(made / 255 - expected).max() < 0.51 / 255


@pytest.mark.skipif(not TINYWORLD.is_dir(), reason="the shipped model is not here")
@pytest.mark.parametrize(("solver", "guidance"), [("euler", 1.0), ("unipc", 5.0)])
def test_the_shipped_model_agrees(solver: str, guidance: float) -> None:
    config = ModelConfig(
        name="tinyworld",
        folder=TINYWORLD,
        checkpoint=None,
        fps=16,
        height=64,
        width=64,
        block_frames=3,
        text_tokens=24,
    )
    model = load_model(config, torch.device("cpu"), torch.float32)
    cues = (Cue(0, "a large red circle bouncing around slowly on a gray background"),)
    request = Request(cues, 2.0, 64, 64, 16, 7, guidance)
    made, _ = run_longtake(model, request, solver, 4)
    expected = run_diffusers(model, request, solver, 4, "latent")
    torch.testing.assert_close(made, expected, atol=TOLERANCE, rtol=0)
