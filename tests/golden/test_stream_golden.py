"""StreamDiffusionV2's stream batch, to the digits of its published code, as any strategy."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tests.golden.conftest import CPU, FPS, GoldenCase
from torch import Tensor

from longtake.parallel.mesh import alone
from longtake.runtime.member import Member
from longtake.runtime.noise import Noise
from longtake.runtime.samplers import BlockSampler, FewStep
from longtake.runtime.wan_transformer import WanTransformer
from longtake.runtime.weights import load_transformer
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.stream import StreamBatch

SYSTEMS = ("stream_diffusion_v2",)
TOLERANCE = 2e-4


@dataclass
class StreamRun:
    """Stands for source, noise, sampler and store of a case, whose blocks are single frames."""

    case: GoldenCase
    blocks: dict[int, Tensor] = field(default_factory=dict)
    x0: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def sampler(self) -> FewStep:
        return FewStep(tuple(self.case["denoising_steps"]), self.case["shift"], self.case["warp"])

    @property
    def timesteps(self) -> tuple[float, ...]:
        return self.sampler.timesteps

    @property
    def latents(self) -> Tensor:
        """(1, frames, C, h, w)."""
        return torch.cat([self.blocks[frame] for frame in sorted(self.blocks)], dim=2).transpose(
            1, 2
        )

    def initial(self, block: int, shape: tuple[int, ...]) -> Tensor:
        scale = self.case["noise_scale"]
        noise, given = (self.case.tensors[name] for name in ("noise", "input_latents"))
        mixed: Tensor = scale * noise[:, block] + (1 - scale) * given[:, block]
        return mixed.unsqueeze(2)

    def renoise(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        noise: Tensor = self.case.tensors["renoise"][step, :, block]
        return noise.unsqueeze(2)

    def begin(self, block: int, noise: Noise) -> BlockSampler:
        return Watched(self, block, self.sampler.begin(block, noise))

    def read(self, block: int) -> Tensor | None:
        return None

    def write(self, block: int, latents: Tensor) -> None:
        self.blocks[block] = latents

    def read_state(self) -> None:
        return None

    def write_state(self, tick: int, tensors: dict[str, Tensor]) -> None:
        raise AssertionError("keys of noisy frames can't be kept in a state")


@dataclass(frozen=True)
class Watched:
    run: StreamRun
    block: int
    inner: BlockSampler

    def step(self, step: int, x: Tensor, flow: Tensor) -> Tensor:
        sigma = self.inner.sigmas[step]  # type: ignore[attr-defined]
        self.run.x0[self.block, step] = x - sigma * flow
        return self.inner.step(step, x, flow)


def tiny_spec(folder: Path, case: GoldenCase) -> ModelSpec:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return ModelSpec(
        layers=config["num_layers"],
        heads=config["num_heads"],
        head_dim=config["dim"] // config["num_heads"],
        ffn_dim=config["ffn_dim"],
        latent_channels=config["in_dim"],
        patch=config["patch_size"][1],
        rotary_rows=1024,
        block_frames=case["frames_per_block"],
    )


def plan(case: GoldenCase, spec: ModelSpec, apart: int = 1) -> tuple[StreamBatch, Schedule]:
    """The strategy and the schedule that the parameters describe."""
    first, steps = case["first_chunk_frames"], len(case["denoising_steps"])
    retention = Retention(case["kv_frames"], case["sink_frames"], recache=False)
    batch = StreamBatch(retention, steps, first, apart)
    seconds = spec.pixel_frames(first + case["num_chunks"] - 1) / FPS
    request = Request((Cue(0, "x"),), seconds, *case.size, FPS)
    return batch, Schedule(batch, request, spec, steps)


def run(path: Path, folder: Path, apart: int) -> StreamRun:
    """What the strategy makes of a golden file."""
    config_file = folder / "config.json"
    case = GoldenCase(path, json.loads(config_file.read_text("utf-8"))["text_len"])
    transformer = WanTransformer(
        load_transformer(
            folder / "self_forcing_tiny.pt", device=CPU, dtype=torch.float32, base=config_file
        )
    )
    made, text = StreamRun(case), case.text(0)
    with alone(CPU) as mesh:
        Member(
            transformer,
            plan(case, tiny_spec(folder, case), apart)[1],
            sampler=made,
            noise=made,
            mesh=mesh,
            text_shape=(text.shape[1], text.shape[2]),
            encode=lambda prompt: text,
            store=made,
        ).run()
    return made


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


@pytest.mark.parametrize("apart", [1, 3])
def test_agrees_with_the_published_code(golden_file: Path, golden_folder: Path, apart: int) -> None:
    made = run(golden_file, golden_folder, apart)
    true = made.case.tensors
    assert largest(made.latents - true["latents"]) < TOLERANCE
    for step, x0 in enumerate(true["prepare_x0"]):
        together = torch.cat([made.x0[frame, step] for frame in (0, 1)], dim=2)
        assert largest(together.transpose(1, 2) - x0) < TOLERANCE
    checked = 0
    for tick, chunks in enumerate(true["row_chunk"].tolist()):
        for row, chunk in enumerate(chunks):
            if chunk > 0:
                x0 = true["row_x0"][tick, row]
                assert largest(made.x0[chunk + 1, row].squeeze(2) - x0) < TOLERANCE
                checked += 1
    assert checked == len(made.timesteps) * (made.case["num_chunks"] - 1)


def test_19_every_row_sees_the_frames_that_the_published_code_holds(
    golden_file: Path, golden_folder: Path
) -> None:
    case = GoldenCase(golden_file, 16)
    batch, schedule = plan(case, tiny_spec(golden_folder, case))
    held = case.tensors["slots"][:, 0]  # the same in every layer
    flowing = (task for task in schedule if task.parts and task.block >= batch.together)
    for tick, task in enumerate(flowing):
        for part in task.parts:
            assert part.step is not None
            seen = {f for s in part.sees for f in s.frames.frames()} | {part.frames.start}
            assert seen == set(held[tick, part.step].tolist()) - {-1}
    assert tick == len(held) - 1
