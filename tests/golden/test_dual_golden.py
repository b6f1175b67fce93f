"""DualParal, to the digits of its published forward code, through the normal strategy and worker.

The vectors hold the algorithm with its two defects corrected: every block has its own solver, and
what a block sees of the one before it is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.golden.conftest import CPU, FPS, GoldenCase
from torch import Tensor

from longtake.parallel.mesh import alone
from longtake.runtime.launch_worker import LaunchWorker
from longtake.runtime.noise import Noise, PooledNoise
from longtake.runtime.samplers import BlockSampler, Solver
from longtake.runtime.wan_transformer import Hidden, WanTransformer
from longtake.runtime.weights import load_transformer
from longtake.runtime.workers import make_launches
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.loop import drive
from longtake.scheduler.plan import Plan
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.dual import Dual

SYSTEMS = ("dualparal",)
TOLERANCE = 2e-4


class WatchedTransformer(WanTransformer):
    """Keeps what it is given, (1, f, C, h, w)."""

    inputs: list[Tensor]

    def embed(self, latents: Tensor, timesteps: Tensor) -> Hidden:
        self.inputs.append(latents[:1].transpose(1, 2).clone())
        return super().embed(latents, timesteps)


class GivenPool(PooledNoise):
    """The case's pool and permutations."""

    def __init__(self, case: GoldenCase) -> None:
        super().__init__(0, case["npb"], case["ncat"])
        self.case = case

    def pool(self, shape: tuple[int, ...]) -> Tensor:
        pool: Tensor = self.case.tensors["noise_pool"].transpose(1, 2)
        assert pool.shape == shape
        return pool

    def permutation(self, block: int) -> list[int]:
        order: list[int] = self.case.tensors["permutations"][block].tolist()
        return order


@dataclass
class Run:
    """Stands for sampler and store; keeps what is computed, in order, (1, f, C, h, w)."""

    solver: Solver
    blocks: list[int] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    finished: dict[int, Tensor] = field(default_factory=dict)

    @property
    def timesteps(self) -> tuple[float, ...]:
        return self.solver.timesteps

    def begin(self, block: int, noise: Noise) -> BlockSampler:
        return Watched(self, block, self.solver.begin(block, noise))

    def write(self, block: int, latents: Tensor) -> None:
        self.finished[block] = latents.transpose(1, 2)

    def write_state(self, tick: int, tensors: dict[str, Tensor]) -> None:
        """This run is not killed."""


@dataclass(frozen=True)
class Watched:
    run: Run
    block: int
    inner: BlockSampler

    def step(self, step: int, x: Tensor, flow: Tensor) -> Tensor:
        moved = self.inner.step(step, x, flow)
        self.run.blocks.append(self.block)
        self.run.predictions.append(flow.transpose(1, 2).clone())
        self.run.latents.append(moved.transpose(1, 2).clone())
        return moved

    def state(self) -> Tensor:
        return self.inner.state()


def test_agrees_with_the_published_code(golden_file: Path, golden_folder: Path) -> None:
    case = GoldenCase(golden_file, 0)
    module = load_transformer(golden_folder / case["model"], device=CPU, dtype=torch.float32)
    transformer = WatchedTransformer(module)
    transformer.inputs = []
    run = walk(case, transformer)
    expected = case.tensors
    assert run.timesteps == tuple(expected["timesteps"].tolist())
    order = expected["order"].tolist()
    assert run.blocks == [block for _, block, _ in order]
    found = {
        "input": transformer.inputs,
        "prediction": run.predictions,
        "latent": run.latents,
    }
    for what, tensors in found.items():
        for tensor, (iteration, block, _) in zip(tensors, order, strict=True):
            name = f"{what}_{iteration:02}_{block:02}"
            assert tensor.shape == expected[name].shape, name
            assert (tensor - expected[name]).abs().max() < TOLERANCE, name
    latents = torch.cat([run.finished[block] for block in sorted(run.finished)], dim=1)
    assert latents.shape == expected["latents"].shape
    assert (latents - expected["latents"]).abs().max() < TOLERANCE


def walk(case: GoldenCase, transformer: WanTransformer) -> Run:
    """The case's run, as of any request."""
    config: Any = transformer.module.config
    spec = ModelSpec(
        layers=config.num_layers,
        heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        ffn_dim=config.ffn_dim,
        latent_channels=config.in_channels,
        patch=config.patch_size[1],
        rotary_rows=config.rope_max_seq_len,
        block_frames=3,
    )
    seconds = spec.pixel_frames(case["num_output_frames"]) / FPS
    height, width = (8 * side for side in case.tensors["noise_pool"].shape[-2:])
    request = Request((Cue(0, "first"),), seconds, height, width, FPS, 0, case["guidance"])
    options = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": case["flow_shift"],
    }
    run = Run(Solver("UniPCMultistepScheduler", case["T"], options, CPU))
    dual, mesh = Dual(case["npb"], case["ncat"]), alone(CPU)
    texts = [case.tensors["negative_context"], case.tensors["context"]]
    worker = LaunchWorker(
        transformer=transformer,
        encode_text=lambda cue: torch.cat(texts),
        request=request,
        spec=spec,
        sampler=run,
        noise=GivenPool(case),
        store=run,  # type: ignore[arg-type]
        mesh=mesh,
        launches=make_launches(transformer, spec, dual.cached_frames(request, spec), request, mesh),
    )
    schedule = Schedule(dual, request, spec, case["T"])
    assert schedule.blocks == case["num_blocks"]
    drive(schedule, Plan(), {"denoise": worker})
    return run
