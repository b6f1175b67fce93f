"""Golden cases, and one way to run them: through schedule, loop and worker, as any request."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from longtake.parallel.mesh import alone
from longtake.runtime.noise import Noise
from longtake.runtime.samplers import BlockSampler, FewStep
from longtake.runtime.wan_transformer import WanTransformer
from longtake.runtime.weights import load_transformer
from longtake.runtime.workers import DenoiseWorker, make_window
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.loop import drive
from longtake.scheduler.plan import Plan
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.causal import Causal

CPU = torch.device("cpu")
FPS = 16
STRIDE = 8  # pixels per latent pixel


class GoldenCase:
    """A golden file: its parameters, and its tensors in the layout of the runtime."""

    def __init__(self, path: Path, text_tokens: int) -> None:
        self.text_tokens = text_tokens
        with safe_open(path, "pt") as file:
            self.parameters = {k: json.loads(v) for k, v in file.metadata().items()}
            self.tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118

    def __getitem__(self, parameter: str) -> Any:
        return self.parameters[parameter]

    @property
    def frames(self) -> int:
        return int(self["frames_per_block"] * self["num_blocks"])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.tensors["noise"].shape[-2:]
        return height * STRIDE, width * STRIDE

    @property
    def gapped(self) -> bool:
        """Whether frames between the sink and the window are forgotten."""
        return bool(0 <= self["window_frames"] < self.frames and self["sink_frames"] > 0)

    @cached_property
    def sampler(self) -> FewStep:
        return FewStep(tuple(self["denoising_steps"]), self["shift"])

    def retention(self, positions: Positions) -> Retention:
        """The policy that the parameters describe."""
        return Retention(
            window=None if self["window_frames"] == -1 else self["window_frames"],
            sink=self["sink_frames"],
            positions=positions,
            keep_sink=self.parameters.get("global_sink", True),
        )

    def request(self, spec: ModelSpec) -> Request:
        """The request that gives as many blocks, with a second prompt where the case has one."""
        cues = [Cue(0, "first")]
        switch = self.parameters.get("switch_before_block")
        if switch is not None:
            cues.append(Cue(spec.pixel_frames(switch * spec.block_frames) / FPS, "second"))
        return Request(tuple(cues), spec.pixel_frames(self.frames) / FPS, *self.size, FPS)

    def text(self, cue: int) -> Tensor:
        """The embeddings of a prompt, padded with zeros as the model pads them."""
        context = self.tensors["context_2" if cue else "context"]
        return torch.nn.functional.pad(context, (0, 0, 0, self.text_tokens - context.shape[1]))


@dataclass
class GoldenRun:
    """Stands for noise, sampler and store: gives the case's noise, and keeps what was computed."""

    case: GoldenCase
    blocks: dict[int, Tensor] = field(default_factory=dict)
    flow: list[Tensor] = field(default_factory=list)
    x0: list[Tensor] = field(default_factory=list)

    @property
    def latents(self) -> Tensor:
        """(1, frames, C, h, w)."""
        return torch.cat([self.blocks[b] for b in range(self.case["num_blocks"])], dim=1)

    @property
    def timesteps(self) -> tuple[float, ...]:
        return self.case.sampler.timesteps

    def initial(self, block: int, shape: tuple[int, ...]) -> Tensor:
        frames = self.case["frames_per_block"]
        noise: Tensor = self.case.tensors["noise"][:, block * frames : (block + 1) * frames]
        return noise.transpose(1, 2).contiguous()

    def renoise(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        noise: Tensor = self.case.tensors["renoise"][block, step]
        return noise.transpose(1, 2).contiguous()

    def read(self, block: int) -> Tensor | None:
        return None

    def write(self, block: int, latents: Tensor) -> None:
        self.blocks[block] = latents.transpose(1, 2)

    def read_state(self) -> None:
        return None

    def write_state(self, tick: int, tensors: dict[str, Tensor]) -> None:
        """Nothing goes on from here."""

    def begin(self, block: int, noise: Noise) -> BlockSampler:
        return _Watched(self, self.case.sampler.begin(block, noise))


@dataclass(frozen=True)
class _Watched:
    run: GoldenRun
    inner: BlockSampler

    def step(self, step: int, x: Tensor, flow: Tensor) -> Tensor:
        self.run.flow.append(flow.transpose(1, 2))
        self.run.x0.append((x - self.run.timesteps[step] / 1000 * flow).transpose(1, 2))
        return self.inner.step(step, x, flow)

    def state(self) -> Tensor:
        return self.inner.state()

    def resume(self, state: Tensor) -> None:
        self.inner.resume(state)


@pytest.fixture(scope="session")
def run_golden(golden_folder: Path) -> Callable[[Path, Positions], GoldenRun]:
    """Run a golden file under a position rule."""
    transformer = WanTransformer(
        load_transformer(
            golden_folder / "self_forcing_tiny.pt",
            device=CPU,
            dtype=torch.float32,
            base=golden_folder / "config.json",
        )
    )

    text_tokens = json.loads((golden_folder / "config.json").read_text("utf-8"))["text_len"]

    def run(path: Path, positions: Positions) -> GoldenRun:
        return _run(GoldenCase(path, text_tokens), positions, transformer)

    return run


def _run(case: GoldenCase, positions: Positions, transformer: WanTransformer) -> GoldenRun:
    config = transformer.module.config
    heads, head_dim = config.num_attention_heads, config.attention_head_dim
    spec = ModelSpec(
        layers=config.num_layers,
        heads=heads,
        head_dim=head_dim,
        ffn_dim=config.ffn_dim,
        latent_channels=config.in_channels,
        patch=config.patch_size[1],
        rotary_rows=1024,
        block_frames=case["frames_per_block"],
    )
    request, retention = case.request(spec), case.retention(positions)
    mesh = alone(CPU)
    run = GoldenRun(case)
    worker = DenoiseWorker(
        transformer=transformer,
        encode_text=case.text,
        request=request,
        spec=spec,
        sampler=run,
        noise=run,
        store=run,
        mesh=mesh,
        window=make_window(transformer, spec, retention, request, case.frames, mesh),
        history=retention.capacity(case.frames),
        context_timestep=float(case["context_noise"]),
    )
    schedule = Schedule(Causal(retention), request, spec, len(run.timesteps))
    drive(schedule, Plan(), {"denoise": worker})
    return run
