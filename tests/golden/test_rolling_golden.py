"""Rolling Forcing, to the digits of its published code, through the normal strategy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.golden.conftest import CPU, FPS, GoldenCase, GoldenRun

from longtake.parallel.mesh import alone
from longtake.runtime.member import Member
from longtake.runtime.wan_transformer import WanTransformer
from longtake.runtime.weights import load_transformer
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.rolling import Rolling
from longtake.scheduler.task import Kind

SYSTEMS = ("rolling_forcing",)
TOLERANCE = 2e-4


def run(path: Path, folder: Path, positions: Positions) -> tuple[GoldenRun, Schedule]:
    """What the strategy makes of a golden file."""
    config_file = folder / "config.json"
    case = GoldenCase(path, json.loads(config_file.read_text("utf-8"))["text_len"])
    transformer = WanTransformer(
        load_transformer(
            folder / "self_forcing_tiny.pt", device=CPU, dtype=torch.float32, base=config_file
        )
    )
    config = transformer.module.config
    spec = ModelSpec(
        layers=config.num_layers,
        heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        ffn_dim=config.ffn_dim,
        latent_channels=config.in_channels,
        patch=config.patch_size[1],
        rotary_rows=1024,
        block_frames=case["frames_per_block"],
    )
    steps = len(case.sampler.timesteps)
    sink = case["sink_blocks"] * spec.block_frames
    strategy = Rolling(Retention(case["attention_frames"], sink, positions, recache=False), steps)
    request = Request((Cue(0, "x"),), spec.pixel_frames(case.frames) / FPS, *case.size, FPS)
    assert strategy.cached_frames(request, spec) == case["cache_frames"]
    made, text = GoldenRun(case), case.text(0)
    schedule = Schedule(strategy, request, spec, steps)
    with alone(CPU) as mesh:
        Member(
            transformer,
            schedule,
            sampler=made,
            noise=made,
            mesh=mesh,
            text_shape=(case.text_tokens, text.shape[2]),
            encode=lambda prompt: text,
            store=made,
            context_timestep=float(case["context_noise"]),
        ).run()
    return made, schedule


@pytest.mark.parametrize("positions", [Positions.RELATIVE, Positions.SINK_REBASED])
def test_16_agrees_with_the_published_code_in_every_window(
    golden_file: Path, golden_folder: Path, positions: Positions
) -> None:
    """The published code rebases the sink; counting in the window places all frames alike."""
    made, schedule = run(golden_file, golden_folder, positions)
    expected = made.case.tensors
    torch.testing.assert_close(
        torch.tensor(made.timesteps), expected["denoising_timesteps"].float(), atol=1e-3, rtol=0
    )
    assert (made.latents - expected["latents"]).abs().max() < TOLERANCE
    windows = [task for task in schedule if task.kind is Kind.DENOISE]
    assert len(windows) == made.case["num_blocks"] + len(made.timesteps) - 1
    predicted = iter(made.x0)
    for index, task in enumerate(windows):
        noisy = [part for part in task.parts if part.step is not None]
        window = torch.cat([next(predicted) for _ in noisy], dim=1)
        assert (window - expected[f"window_{index:02}_x0"]).abs().max() < TOLERANCE
    assert next(predicted, None) is None


def test_09_a_sink_that_stays_behind_is_something_else(
    golden_file: Path, golden_folder: Path
) -> None:
    """Without rebasing, the run agrees only as far as nothing has been forgotten."""
    made, _ = run(golden_file, golden_folder, Positions.ABSOLUTE)
    apart = (made.latents - made.case.tensors["latents"]).abs().amax(dim=(0, 2, 3, 4))
    behind_front = (len(made.timesteps) - 1) * made.case["frames_per_block"]
    whole = made.case["attention_frames"] - behind_front
    assert apart[:whole].max() < TOLERANCE < 0.01 < apart[whole:].max()
