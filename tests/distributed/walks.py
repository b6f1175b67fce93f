"""Walks of a strategy's schedule over a small random model, by one process or several.

Test modules of strategies share them: the same walk on workers equals that of one process, and a
walk that is broken off goes on to the same bits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from longtake.parallel.mesh import Rendezvous, alone, open_mesh
from longtake.runtime.launch_worker import STATE_EVERY
from longtake.runtime.member import Member
from longtake.runtime.noise import SeededNoise
from longtake.runtime.samplers import FewStep, Sampler, Solver
from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule, Strategy
from longtake.scheduler.timeline import Action, Activity

TOLERANCE = 2e-5  # of the largest latent, in float32
TEXT_TOKENS, TEXT_WIDTH = 6, 8
CPU = torch.device("cpu")
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


class Broken(Exception):
    """The run was killed."""


@dataclass
class Blocks:
    """Rank 0's store; with `breaks_after`, so many writes are the last that it takes."""

    made: dict[int, Tensor] = field(default_factory=dict)
    state: tuple[int, dict[str, Tensor]] | None = None
    breaks_after: int | None = None
    written: int = 0

    def read(self, block: int) -> Tensor | None:
        return self.made.get(block)

    def write(self, block: int, latents: Tensor) -> None:
        self._count()
        self.made[block] = latents.clone()

    def read_state(self) -> tuple[int, dict[str, Tensor]] | None:
        return self.state

    def write_state(self, tick: int, tensors: dict[str, Tensor]) -> None:
        self._count()
        self.state = (tick, {name: tensor.clone() for name, tensor in tensors.items()})

    def _count(self) -> None:
        if self.written == self.breaks_after:
            raise Broken
        self.written += 1

    @property
    def latents(self) -> Tensor:
        """All blocks, (1, C, frames, h, w)."""
        return torch.cat([self.made[block] for block in sorted(self.made)], dim=2)


@dataclass(frozen=True)
class Walk:
    """What to make, of `frames` latent frames on a grid of patches that divides by nothing.

    `cues` are the latent frames at which prompts begin. `sampler` is `few` or `unipc`. `layers` are
    the model's.
    """

    strategy: Strategy
    frames: int = 10
    block_frames: int = 2
    grid: tuple[int, int] = (3, 5)
    guidance: float = 1.0
    cues: tuple[int, ...] = (0,)
    steps: int = 3
    sampler: str = "few"
    layers: int = 3

    def schedule(self) -> Schedule:
        """A new one."""
        config = transformer(self.layers).module.config
        spec = ModelSpec(
            layers=config.num_layers,
            heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            ffn_dim=config.ffn_dim,
            latent_channels=config.in_channels,
            patch=2,
            rotary_rows=1024,
            block_frames=self.block_frames,
        )
        cues = tuple(Cue(spec.pixel_frames(at) / 16, "x" * (at + 1)) for at in self.cues)
        height, width = (16 * side for side in self.grid)
        seconds = spec.pixel_frames(self.frames) / 16
        request = Request(cues, seconds, height, width, 16, 3, self.guidance)
        return Schedule(self.strategy, request, spec, self.steps)

    def make_sampler(self) -> Sampler:
        """Its own steps."""
        if self.sampler == "unipc":
            return Solver("UniPCMultistepScheduler", self.steps, UNIPC, CPU)
        return FewStep((1000.0, 750.0, 500.0, 250.0)[: self.steps], 5.0)


@lru_cache(2)
def transformer(layers: int = 3) -> WanTransformer:
    """12 heads, random weights."""
    torch.manual_seed(1)
    module = WanTransformer3DModel(
        num_attention_heads=12,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=256,
        num_layers=layers,
    )
    torch.nn.init.normal_(module.proj_out.weight, std=0.1)
    return WanTransformer(module.eval().requires_grad_(False))


def encode(text: str) -> Tensor:
    """Random embeddings of a prompt."""
    generator = torch.Generator().manual_seed(len(text))
    return torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, generator=generator)


def take(
    walk: Walk,
    degrees: Degrees | None = None,
    rendezvous: Rendezvous | None = None,
    blocks: Blocks | None = None,
    **changes: Any,
) -> Blocks:
    """One rank's part in a walk; what is made is there on rank 0 only."""
    torch.set_num_threads(1)
    blocks = Blocks() if blocks is None else blocks
    mesh = alone(CPU) if rendezvous is None else open_mesh(rendezvous, degrees, CPU)
    first = mesh.rank == 0
    with mesh:
        Member(
            transformer(walk.layers),
            walk.schedule(),
            changes.get("sampler", walk.make_sampler()),
            changes.get("noise", SeededNoise(3)),
            mesh,
            (TEXT_TOKENS, TEXT_WIDTH),
            encode if first else None,
            blocks if first else None,
            state_every=changes.get("state_every", STATE_EVERY),
            source=changes["source"](mesh) if "source" in changes else None,
        ).run()
    return blocks


def take_on_worker(
    rendezvous: Rendezvous, walk: Walk, degrees: Degrees, blocks: Blocks | None = None
) -> Tensor | None:
    """For the pool."""
    made = take(walk, degrees, rendezvous, blocks)
    return made.latents if rendezvous.rank == 0 else None


@lru_cache(32)
def alone_made(walk: Walk) -> Tensor:
    """What one process makes."""
    return take(walk).latents


def check_on_workers(workers: Any, walk: Walk, degrees: Degrees) -> None:
    """Workers make what one process makes, to rounding."""
    made = workers.run(degrees.world, take_on_worker, walk, degrees, timeout=60)[0]
    assert distance(made, alone_made(walk)) < TOLERANCE


def check_resume(walk: Walk, breaks_after: int, damaged: int | None = None, **changes: Any) -> None:
    """A run that is killed after so many writes goes on to the same bits, even if one of the
    finished blocks is `damaged` meanwhile."""
    blocks = Blocks(breaks_after=breaks_after)
    try:
        take(walk, blocks=blocks, **changes)
    except Broken:
        blocks.breaks_after = None
    else:
        raise AssertionError(f"only {blocks.written} writes, so none was the last")
    if damaged is not None:
        del blocks.made[damaged]
    assert torch.equal(take(walk, blocks=blocks, **changes).latents, alone_made(walk))


def distance(made: Tensor, true: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    assert made.shape == true.shape
    return float((made - true).abs().max() / true.abs().max())


def bytes_sent(rendezvous: Rendezvous, walk: Walk, degrees: Degrees) -> dict[str, int]:
    """What a rank's transfers carry, by name."""
    torch.set_num_threads(1)
    actions: list[Action] = []
    with open_mesh(rendezvous, degrees, CPU, record=actions.append) as mesh:
        first = mesh.rank == 0
        text = (TEXT_TOKENS, TEXT_WIDTH)
        Member(
            transformer(walk.layers),
            walk.schedule(),
            walk.make_sampler(),
            SeededNoise(3),
            mesh,
            text,
            encode if first else None,
            Blocks() if first else None,
        ).run()
    sent: Counter[str] = Counter()
    for action in actions:
        if action.activity is Activity.TRANSFER:
            sent[action.name] += action.bytes
    return dict(sent)
