"""Every plan that four processes can run equals one worker, in real processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.nn import functional

from longtake.kernels.attention import attention_with_lse
from longtake.kernels.merge import Partial
from longtake.parallel.mesh import Rendezvous, alone, open_mesh
from longtake.parallel.ring import RingAttention
from longtake.runtime.member import Member
from longtake.runtime.noise import SeededNoise
from longtake.runtime.samplers import FewStep, Solver
from longtake.runtime.wan_transformer import WanTransformer
from longtake.runtime.weights import load_transformer
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule, Strategy
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.causal import Causal

WORLD = 4
TOLERANCE = 2e-5  # of the largest latent, in float32
TINYWORLD = Path(__file__).parents[2] / "models" / "tinyworld" / "transformer"
TEXT_TOKENS = 6
CPU = torch.device("cpu")
STRATEGIES: dict[str, Strategy] = {
    "bidirectional": Bidirectional(),
    "causal": Causal(Retention(6, 2, Positions.RELATIVE)),
    "rebased": Causal(Retention(6, 2, Positions.SINK_REBASED)),
}


@dataclass
class Blocks:
    """Rank 0's store: what it held at first, and what was made."""

    held: dict[int, Tensor] = field(default_factory=dict)
    made: dict[int, Tensor] = field(default_factory=dict)

    def read(self, block: int) -> Tensor | None:
        return self.held.get(block)

    def write(self, block: int, latents: Tensor) -> None:
        self.made[block] = latents

    @property
    def latents(self) -> Tensor:
        return torch.cat([self.made[block] for block in sorted(self.made)], dim=2)


@dataclass(frozen=True)
class Case:
    """What to make: a model, a strategy, a size in patches whose tokens may divide by nothing."""

    model: str
    strategy: str
    grid: tuple[int, int]
    guidance: float
    held: tuple[int, ...] = ()

    def schedule(self, transformer: WanTransformer) -> Schedule:
        config = transformer.module.config
        spec = ModelSpec(
            layers=config.num_layers,
            heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            ffn_dim=config.ffn_dim,
            latent_channels=config.in_channels,
            patch=2,
            rotary_rows=1024,
            block_frames=2,
        )
        cues = [Cue(0, "one"), Cue(17 / 16, "two")]
        cues = cues[: 1 if self.strategy == "bidirectional" else 2]
        height, width = (16 * side for side in self.grid)
        request = Request(tuple(cues), 37 / 16, height, width, 16, 3, self.guidance)
        return Schedule(STRATEGIES[self.strategy], request, spec, 2)


def transformer_of(model: str) -> WanTransformer:
    if model == "tinyworld":
        return WanTransformer(load_transformer(TINYWORLD, device=CPU, dtype=torch.float32))
    torch.manual_seed(1)
    module = WanTransformer3DModel(
        num_attention_heads=12,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=32,
        ffn_dim=256,
        num_layers=3,
    )
    torch.nn.init.normal_(module.proj_out.weight, std=0.1)
    return WanTransformer(module.eval().requires_grad_(False))


def make(case: Case, degrees: Degrees, rendezvous: Rendezvous | None) -> Blocks:
    """One rank's part; the blocks are there on rank 0 only."""
    torch.use_deterministic_algorithms(True)
    transformer = transformer_of(case.model)
    width = transformer.module.config.text_dim

    def encode(text: str) -> Tensor:
        generator = torch.Generator().manual_seed(len(text) + ord(text[-1:] or "x"))
        return torch.randn(1, TEXT_TOKENS, width, generator=generator)

    mesh = alone(CPU) if rendezvous is None else open_mesh(rendezvous, degrees, CPU)
    first = mesh.rank == 0
    schedule = case.schedule(transformer)
    shape = (1, schedule.spec.latent_channels, 2, *(2 * side for side in case.grid))
    generator = torch.Generator().manual_seed(9)
    blocks = Blocks({block: torch.randn(shape, generator=generator) for block in case.held})
    sampler = (
        Solver("UniPCMultistepScheduler", 2, UNIPC, CPU)
        if case.strategy == "bidirectional"
        else FewStep((1000.0, 500.0), 5.0)
    )
    with mesh:
        Member(
            transformer,
            schedule,
            sampler,
            SeededNoise(3),
            mesh,
            (TEXT_TOKENS, width),
            encode if first else None,
            blocks if first else None,
        ).run()
    return blocks


UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def run(rendezvous: Rendezvous, case: Case, degrees: Degrees) -> Tensor | None:
    """For the pool."""
    torch.set_num_threads(1)
    blocks = make(case, degrees, rendezvous)
    return blocks.latents if rendezvous.rank == 0 else None


def plans() -> Iterator[Degrees]:
    """All that fit, but the one that splits nothing."""
    for cfg, stages, ring, ulysses in product((1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4)):
        degrees = Degrees(cfg=cfg, stages=stages, ring=ring, ulysses=ulysses)
        if 1 < degrees.world <= WORLD:
            yield degrees


def cases() -> Iterator[Any]:
    """Every plan with both strategies on both models, as far as the models' heads allow."""
    for model, strategy, degrees in product(
        ("random", "tinyworld"), ("bidirectional", "causal"), plans()
    ):
        guidance = 3.0 if degrees.cfg == 2 or degrees.stages == 2 else 1.0
        grid = (3, 5) if model == "random" else (4, 4)
        case = Case(model, strategy, grid, guidance)
        try:
            degrees.check(case.schedule(KNOWN[model]).spec, guidance)
        except UserError:
            continue
        yield pytest.param(case, degrees, id=f"{model}-{strategy}-{degrees.describe()}")


KNOWN = {model: transformer_of(model) for model in ("random", "tinyworld")}
EXPECTED: dict[Case, Tensor] = {}


@pytest.fixture
def expected() -> Any:
    """What one worker makes of a case, computed once."""

    def of(case: Case) -> Tensor:
        if case not in EXPECTED:
            EXPECTED[case] = make(case, Degrees(), None).latents
        return EXPECTED[case]

    return of


def distance(made: Tensor, true: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    assert made.shape == true.shape
    return float((made - true).abs().max() / true.abs().max())


@pytest.mark.parametrize(("case", "degrees"), list(cases()))
def test_a_plan_equals_one_worker(
    workers: Any, expected: Any, case: Case, degrees: Degrees
) -> None:
    made = workers.run(degrees.world, run, case, degrees, timeout=60)[0]
    assert distance(made, expected(case)) < TOLERANCE


@pytest.mark.parametrize(
    ("model", "strategy", "degrees"),
    [
        ("random", "causal", Degrees(stages=2, stage_layers=(1, 2))),
        ("tinyworld", "bidirectional", Degrees(stages=3, stage_layers=(3, 1, 2))),
    ],
    ids=str,
)
def test_stages_of_uneven_layers_equal_one_worker(
    workers: Any, expected: Any, model: str, strategy: str, degrees: Degrees
) -> None:
    case = Case(model, strategy, (3, 5) if model == "random" else (4, 4), 1.0)
    made = workers.run(degrees.world, run, case, degrees, timeout=60)[0]
    assert distance(made, expected(case)) < TOLERANCE


class DropHop(RingAttention):
    """Forgets what arrives first."""

    def _add(self, partial: Partial | None, q: Tensor, k: Tensor, v: Tensor) -> Partial:
        first = super()._add(None, q, k, v)
        return first if partial is None else partial


class CountTwice(RingAttention):
    """Takes in its own keys twice. (Wan's text is no part of a ring: each worker sees it whole, and
    to see all of it twice would change nothing.)"""

    def _add(self, partial: Partial | None, q: Tensor, k: Tensor, v: Tensor) -> Partial:
        merged = super()._add(partial, q, k, v)
        return super()._add(merged, q, k, v) if partial is None else merged


class AttendPadding(RingAttention):
    """Attends to a key of zeros behind every share."""

    def _add(self, partial: Partial | None, q: Tensor, k: Tensor, v: Tensor) -> Partial:
        k, v = (functional.pad(x, (0, 0, 0, 0, 0, 1)) for x in (k, v))
        return super()._add(partial, q, k, v)


class RoundLse(RingAttention):
    """Keeps the log-sum-exp of every part in bfloat16."""

    def _add(self, partial: Partial | None, q: Tensor, k: Tensor, v: Tensor) -> Partial:
        out, lse = attention_with_lse(q, k, v)
        lse = lse.bfloat16().float()
        if partial is None:
            return Partial.start(out, lse)
        partial.add(out, lse)
        return partial


def run_wrong(rendezvous: Rendezvous, case: Case, degrees: Degrees, ring: Any) -> Tensor | None:
    """As `run`, with another ring."""
    with patch("longtake.parallel.sequence.RingAttention", ring):
        return run(rendezvous, case, degrees)


@pytest.mark.parametrize("strategy", ["bidirectional", "causal"])
@pytest.mark.parametrize("ring", [DropHop, CountTwice, AttendPadding, RoundLse])
def test_what_is_wrong_on_purpose_is_found(
    workers: Any, expected: Any, ring: Any, strategy: str
) -> None:
    case = Case("random", strategy, (3, 5), 1.0)
    made = workers.run(2, run_wrong, case, Degrees(ring=2), ring, timeout=60)[0]
    assert distance(made, expected(case)) > 2 * TOLERANCE


@pytest.mark.parametrize("degrees", [Degrees(ring=2), Degrees(ulysses=2), Degrees(stages=2)])
@pytest.mark.parametrize("strategy", ["causal", "rebased"])
def test_restored_blocks_are_the_same_on_all_workers(
    workers: Any, expected: Any, strategy: str, degrees: Degrees
) -> None:
    """Blocks 0 and 2 come from the store, and what follows them is as with one worker."""
    case = Case("random", strategy, (3, 5), 3.0, held=(0, 2))
    made = workers.run(2, run, case, degrees, timeout=60)[0]
    assert distance(made, expected(case)) < TOLERANCE


def test_23_a_worker_may_have_no_tokens(workers: Any, expected: Any) -> None:
    """Two tokens a frame for three workers."""
    case = Case("random", "causal", (1, 2), 1.0)
    for degrees in (Degrees(ring=3), Degrees(ulysses=3)):
        made = workers.run(3, run, case, degrees, timeout=60)[0]
        assert distance(made, expected(case)) < TOLERANCE
