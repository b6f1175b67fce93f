"""Self Forcing and LongLive, to the digits of their published code, through the normal strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import FOLDER, cases
from safetensors import safe_open
from torch import Tensor

from longtake.runtime.contexts import Window
from longtake.runtime.kv_cache import KVCache
from longtake.runtime.samplers import FewStep
from longtake.runtime.wan_transformer import WanTransformer
from longtake.runtime.weights import load_transformer
from longtake.runtime.workers import DenoiseWorker
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.loop import drive
from longtake.scheduler.plan import overlapped
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind

TOLERANCE = 2e-4


class Recorded:
    """The noise of a golden run."""

    def __init__(self, noise: Tensor, renoise: Tensor, block_frames: int) -> None:
        self._noise, self._renoise, self._block_frames = noise, renoise, block_frames

    def initial(self, block: int, shape: tuple[int, ...]) -> Tensor:
        start = block * self._block_frames
        return self._noise[:, start : start + self._block_frames].transpose(1, 2).contiguous()

    def renoise(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        return self._renoise[block, step].transpose(1, 2).contiguous()


class Kept:
    """Keeps every finished block, in the layout of the golden files."""

    def __init__(self) -> None:
        self.blocks: dict[int, Tensor] = {}

    def read(self, block: int) -> Tensor | None:
        return None

    def write(self, block: int, latents: Tensor) -> None:
        self.blocks[block] = latents.transpose(1, 2)


def retention_of(system: str, case: dict[str, Any], positions: Positions) -> Retention:
    """The policy that the parameters of a golden file describe."""
    window = case["window_frames"]
    if window == -1:
        return Retention(window=None, sink=0, positions=positions)
    return Retention(
        window=window,
        sink=case["sink_frames"],
        positions=positions,
        recache=True,
        keep_sink=bool(case.get("global_sink", True)),
    )


def run_case(
    path: Path, positions: Positions = Positions.ABSOLUTE
) -> tuple[Kept, dict[str, Tensor]]:
    """Run a golden case through schedule, loop and worker."""
    with safe_open(path, "pt") as file:
        case = {key: json.loads(value) for key, value in file.metadata().items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    block_frames, blocks = case["frames_per_block"], case["num_blocks"]
    transformer = WanTransformer(
        load_transformer(
            FOLDER / "self_forcing_tiny.pt",
            device=torch.device("cpu"),
            dtype=torch.float32,
            base=FOLDER / "config.json",
        )
    )
    config = transformer.module.config
    spec = ModelSpec(
        layers=config.num_layers,
        heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        ffn_dim=config.ffn_dim,
        latent_channels=config.in_channels,
        patch=2,
        rotary_rows=1024,
        block_frames=block_frames,
        fps=16,
    )
    switch = case.get("switch_before_block")
    cues = [Cue(0, "first")]
    if switch is not None:
        cues.append(Cue(spec.pixel_frames(switch * block_frames) / 16, "second"))
    seconds = spec.pixel_frames(blocks * block_frames) / 16
    request = Request(tuple(cues), seconds, height=64, width=64, fps=16)
    sampler = FewStep(tuple(case["denoising_steps"]), case["shift"])
    assert torch.allclose(
        torch.tensor(sampler.timesteps), tensors["denoising_timesteps"].float(), atol=1e-3
    )
    retention = retention_of(case["system"], case, positions)
    schedule = Schedule(Causal(retention), request, spec, len(sampler.timesteps))
    total = blocks * block_frames
    cpu = torch.device("cpu")
    cache = KVCache(
        spec.layers,
        retention.capacity(total) * 16,
        1,
        spec.heads,
        spec.head_dim,
        cpu,
        torch.float32,
    )
    kept = Kept()
    texts = [tensors["context"], tensors.get("context_2", tensors["context"])]

    def encode(cue: int) -> Tensor:
        padded = torch.zeros(1, 16, 24)
        padded[:, : texts[cue].shape[1]] = texts[cue]
        return padded

    worker = DenoiseWorker(
        transformer=transformer,
        encode_text=encode,
        request=request,
        grid=spec.grid(64, 64),
        patch=2,
        sampler=sampler,
        noise=Recorded(tensors["noise"], tensors["renoise"], block_frames),
        store=kept,
        window=Window(cache, retention, spec.grid(64, 64), spec.head_dim, cpu),
        history=retention.capacity(total),
        context_timestep=float(case["context_noise"]),
    )
    drive(schedule, overlapped(), {overlapped().lane_of(Kind.DENOISE): worker})
    return kept, tensors


@pytest.mark.parametrize("path", cases("self_forcing", "longlive"), ids=lambda p: p.stem)
def test_latents_agree_with_the_published_code(path: Path) -> None:
    kept, tensors = run_case(path)
    made = torch.cat([kept.blocks[block] for block in sorted(kept.blocks)], dim=1)
    assert made.shape == tensors["latents"].shape
    assert (made - tensors["latents"]).abs().max() < TOLERANCE
