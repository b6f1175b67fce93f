"""A state of constant size: every block counts once, with its clean keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from longtake.kernels.rotary import rotary_table, rotate
from longtake.parallel.mesh import alone
from longtake.runtime.linear_window import LinearWindow
from longtake.runtime.model import Model
from longtake.scheduler.constant_state import ConstantState
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.tally import Occupancy
from longtake.scheduler.task import Kind, Span

CPU = torch.device("cpu")
TOKENS, HEAD_DIM = 4, 16
MakeLane = Callable[..., Any]


@dataclass
class NaiveLinear:
    """Keeps all keys and values, and computes all pairs in float64."""

    kept: dict[int, dict[int, tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def prompt(self, text: Any) -> None: ...

    def occupancy(self) -> Occupancy:
        return Occupancy()

    def attention(self, frames: Span, context: tuple[Span, ...], rows: slice) -> NaiveAttention:
        return NaiveAttention(self, frames)


@dataclass
class NaiveAttention:
    window: NaiveLinear
    frames: Span

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept = self.window.kept.setdefault(layer, {})
        parts = zip(self.frames.frames(), k.split(TOKENS, 1), v.split(TOKENS, 1), strict=True)
        kept |= {frame: (keys, values) for frame, keys, values in parts}
        keys = relu(torch.cat([kept[frame][0] for frame in range(self.frames.stop)], 1))
        values = torch.cat([kept[frame][1] for frame in range(self.frames.stop)], 1).double()
        table = rotary_table(range(self.frames.stop), 2, 2, HEAD_DIM, CPU)
        q = relu(q)
        own = rotate(q, table[-q.shape[1] :]).double()
        scores = torch.einsum("bqhd,bkhd->bhqk", own, rotate(keys, table).double())
        masses = torch.einsum("bqhd,bkhd->bhqk", q.double(), keys.double())
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores, values)
        return (mixed / masses.sum(-1).transpose(1, 2)[..., None]).to(q.dtype)


def schedule(model: Model, blocks: int, **more: Any) -> Schedule:
    seconds = model.spec.pixel_frames(blocks * model.spec.block_frames) / 16
    request = Request((Cue(0, "first"), Cue(seconds / 2, "second")), seconds, 32, 32, 16, **more)
    return Schedule(Causal(ConstantState()), request, model.spec, steps=2)


@pytest.fixture
def small(tiny_model: Model) -> Model:
    return replace(tiny_model, spec=replace(tiny_model.spec, block_frames=2))


def linear(model: Model, run: Schedule) -> LinearWindow:
    return LinearWindow(model.transformer, model.spec, run.request, alone(CPU))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_run_equals_the_naive_one(small: Model, make_lane: MakeLane, guidance: float) -> None:
    run = schedule(small, 6, guidance=guidance)
    expected = make_lane(run, window=NaiveLinear()).walk().latents
    run = schedule(small, 6, guidance=guidance)
    made = make_lane(run, window=linear(small, run)).walk().latents
    torch.testing.assert_close(made, expected, atol=5e-5, rtol=0)


def seen(window: LinearWindow, start: int) -> Tensor:
    """What a block of ones sees of the past, (1, 2 * TOKENS, H, D), without leaving a trace."""
    memories = dict(window._memories)
    ones = torch.ones(1, 2 * TOKENS, 2, HEAD_DIM)
    out = window.attention(Span(start, start + 2), ()).attend(0, ones, ones, ones)
    window._memories = memories
    return out


def test_02_03_a_block_counts_once_and_clean_however_often_it_is_evaluated(
    small: Model, make_lane: MakeLane
) -> None:
    run = schedule(small, 4)
    lane = make_lane(run, window=linear(small, run))
    for task in run:
        if task.block == 3:
            break
        lane.run(task)
        if task.kind is Kind.COMMIT:
            once = seen(lane.window, task.frames.stop)
            junk = torch.full((1, 2 * TOKENS, 2, HEAD_DIM), 7.0)
            lane.window.attention(task.frames, task.context).attend(0, junk, junk, junk)
            assert not torch.equal(seen(lane.window, task.frames.stop), once)
            for _ in range(2):
                lane.run(task)
                assert torch.equal(seen(lane.window, task.frames.stop), once)


def test_memory_does_not_grow(small: Model, make_lane: MakeLane) -> None:
    run = schedule(small, 8)
    lane = make_lane(run, window=linear(small, run))
    sizes = []
    for task in run:
        lane.run(task)
        if task.kind is Kind.COMMIT:
            sizes.append(lane.window.nbytes)
    layers, state = 2, 2 * HEAD_DIM * (HEAD_DIM + 1) * 4
    assert sizes == [layers * state] + [2 * layers * state] * 7


def test_26_two_requests_do_not_disturb_each_other(small: Model, make_lane: MakeLane) -> None:
    def begin(seed: int) -> tuple[Any, Schedule]:
        run = schedule(small, 4, seed=seed)
        return make_lane(run, window=linear(small, run)), run

    alone_made = []
    for seed in (1, 2):
        alone_made.append(begin(seed)[0].walk().latents)
    (first, ones), (second, others) = begin(1), begin(2)
    for one, other in zip(ones, others, strict=True):
        first.run(one)
        second.run(other)
    assert torch.equal(first.store.latents, alone_made[0])
    assert torch.equal(second.store.latents, alone_made[1])


def test_blocks_come_in_order(small: Model) -> None:
    window = linear(small, schedule(small, 4))
    ones = torch.ones(1, 2 * TOKENS, 2, HEAD_DIM)
    window.attention(Span(0, 2), ()).attend(0, ones, ones, ones)
    with pytest.raises(ValueError, match="don't follow"):
        window.attention(Span(4, 6), ()).attend(0, ones, ones, ones)


def test_10_positions_beyond_the_model_are_refused(small: Model) -> None:
    state = ConstantState()
    state.check(2, 1024, 1024)
    with pytest.raises(UserError, match=r"1026 frames can't be placed .* the model has 1024"):
        state.check(2, 1026, 1024)
    with pytest.raises(UserError, match="an endless stream can't be placed"):
        state.check(2, None, 1024)
