"""Cached attention against a naive one that keeps every raw key and computes in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.runtime.conftest import Store
from torch import Tensor

from longtake.kernels.rotary import axis_dims
from longtake.parallel.mesh import alone
from longtake.runtime.model import Model
from longtake.runtime.workers import make_window
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.tally import Occupancy
from longtake.scheduler.task import Kind, Span, Task

GRID = (2, 2)
TOKENS = 4
HEAD_DIM = 16
MakeLane = Callable[..., Any]


def turned(x: Tensor, position: int) -> Tensor:
    """One frame's tokens, (B, TOKENS, H, HEAD_DIM), rotated by definition."""
    angles = torch.zeros(TOKENS, HEAD_DIM // 2, dtype=torch.float64)
    pair = 0
    places = [[position] * TOKENS, [0, 0, 1, 1], [0, 1, 0, 1]]
    for dim, place in zip(axis_dims(HEAD_DIM), places, strict=True):
        for i in range(dim // 2):
            angles[:, pair] = torch.tensor(place).double() * 10000.0 ** (-2 * i / dim)
            pair += 1
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    spun = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(spun).flatten(-2)


class NaiveWindow:
    """Keeps the raw keys and values of every frame for ever, by (layer, frame)."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self.kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def prompt(self, text: Any) -> None: ...

    def occupancy(self) -> Occupancy:
        return Occupancy()

    def attention(self, frames: Span, context: tuple[Span, ...], rows: slice) -> NaiveAttention:
        return NaiveAttention(self, [*frames.frames()], [f for s in context for f in s.frames()])


@dataclass
class NaiveAttention:
    """One launch of `own` frames that see `past` ones."""

    window: NaiveWindow
    own: list[int]
    past: list[int]

    def position(self, frame: int) -> int:
        seen = sorted(self.past + self.own)
        if self.window.positions is Positions.ABSOLUTE:
            return frame
        if self.window.positions is Positions.RELATIVE:
            return seen.index(frame)
        return seen[-1] - (len(seen) - 1) + seen.index(frame)  # closes the gap after the sink

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [x.split(TOKENS, dim=1) for x in (q, k, v)]
        for frame, key, value in zip(self.own, parts[1], parts[2], strict=True):
            self.window.kept[layer, frame] = (key, value)
        seen = [(frame, *self.window.kept[layer, frame]) for frame in self.past + self.own]
        keys = torch.cat([turned(key, self.position(frame)) for frame, key, _ in seen], dim=1)
        values = torch.cat([value.double() for *_, value in seen], dim=1)
        owned = zip(self.own, parts[0], strict=True)
        queries = torch.cat([turned(part, self.position(frame)) for frame, part in owned], dim=1)
        scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) / HEAD_DIM**0.5
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), values).to(q.dtype)


def schedule(
    spec: ModelSpec, retention: Retention, blocks: int, switches: tuple[int, ...] = (), **more: Any
) -> Schedule:
    """A schedule of so many blocks, with a new prompt before each of the given ones."""

    def starts(block: int) -> float:
        return spec.pixel_frames(block * spec.block_frames) / 16

    cues = (Cue(0, "first"), *(Cue(starts(block), f"from {block}") for block in switches))
    request = Request(cues, starts(blocks), 32, 32, 16, **more)
    return Schedule(Causal(retention), request, spec, steps=2)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    block, sink = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    blocks = draw(st.integers(1, 8))
    retention = Retention(
        window=draw(st.none() | st.integers(sink + block, sink + block + 6)),
        sink=sink,
        positions=draw(st.sampled_from(Positions)),
        recache=draw(st.booleans()),
        keep_sink=draw(st.booleans()),
    )
    switches = draw(st.sets(st.integers(1, max(1, blocks - 1)), max_size=2)) if blocks > 1 else ()
    return {
        "block": block,
        "retention": retention,
        "blocks": blocks,
        "switches": tuple(sorted(switches)),
        "guidance": draw(st.sampled_from([1.0, 3.0])),
    }


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_a_run_equals_the_naive_one(
    tiny_model: Model, make_lane: MakeLane, case: dict[str, Any]
) -> None:
    """Windows, sinks, wrap-around, recaches and all three rules of positions at once."""
    spec = replace(tiny_model.spec, block_frames=case.pop("block"))
    naive = NaiveWindow(case["retention"].positions)
    expected = make_lane(schedule(spec, **case), window=naive).walk().latents
    made = make_lane(schedule(spec, **case)).walk().latents
    torch.testing.assert_close(made, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("positions", Positions)
def test_the_naive_run_hears_a_wrong_position(
    tiny_model: Model, make_lane: MakeLane, positions: Positions
) -> None:
    """The comparison above could tell the rules apart, where they differ."""
    retention = Retention(9, 3, positions)
    run = schedule(tiny_model.spec, retention, blocks=6)
    made = make_lane(run).walk().latents
    for other in Positions:
        run = schedule(tiny_model.spec, retention, blocks=6)
        change = (make_lane(run, window=NaiveWindow(other)).walk().latents - made).abs().max()
        same = other is positions or Positions.ABSOLUTE not in (other, positions)
        assert change < 5e-5 if same else change > 1e-3


@pytest.fixture(params=list(Positions))
def lane(request: pytest.FixtureRequest, tiny_model: Model, make_lane: MakeLane) -> Any:
    """A lane at the first step of a block whose window is full."""
    retention = Retention(9, 3, request.param, keep_sink=True)
    lane = make_lane(schedule(tiny_model.spec, retention, blocks=7, switches=(5,)))
    lane.tasks = iter(lane.schedule)
    for task in lane.tasks:
        if (task.kind, task.block) == (Kind.DENOISE, 4):
            lane.now = task
            break
        lane.run(task)
    return lane


def snapshot(lane: Any, task: Task) -> dict[tuple[int, int], Tensor]:
    """Keys and values held after a task, by (layer, frame), as they are stored."""
    attention = lane.window.attention(task.frames, task.context)
    held = attention.placement.frames
    found = {}
    for layer in range(2):
        stored = torch.cat(attention.cache.read(layer, attention.placement), dim=-1)
        for frame in sorted(set(held.tolist())):
            found[layer, frame] = stored[:, torch.from_numpy(held == frame)].clone()
    return found


def same(a: dict[Any, Tensor], b: dict[Any, Tensor]) -> dict[Any, bool]:
    assert a.keys() == b.keys()
    return {at: torch.equal(a[at], b[at]) for at in a}


def commit_of(task: Task) -> Task:
    return replace(task, kind=Kind.COMMIT)


def test_02_a_block_evaluated_again_leaves_the_cache_as_it_was(lane: Any) -> None:
    lane.run(lane.now)
    lane.run(commit_of(lane.now))
    before = snapshot(lane, lane.now)
    lane.run(commit_of(lane.now))
    assert all(same(before, snapshot(lane, lane.now)).values())


def test_denoising_writes_its_own_frames_only(lane: Any) -> None:
    lane.run(lane.now)
    before = snapshot(lane, lane.now)
    lane.run(replace(lane.now, step=1))
    kept = same(before, snapshot(lane, lane.now))
    own = set(lane.now.frames.frames())
    assert kept == {(layer, frame): frame not in own for layer, frame in kept}


def test_03_what_is_committed_depends_on_the_clean_latents_alone(lane: Any) -> None:
    lane.run(lane.now)
    lane.run(commit_of(lane.now))
    clean = snapshot(lane, lane.now)
    attention = lane.window.attention(lane.now.frames, lane.now.context)
    for layer in range(2):
        junk = torch.full((1, 3 * TOKENS, 2, HEAD_DIM), 7.0)
        attention.cache.write(layer, attention.placement, junk, junk)
    assert not all(same(clean, snapshot(lane, lane.now)).values())
    lane.run(commit_of(lane.now))
    assert all(same(clean, snapshot(lane, lane.now)).values())


@pytest.mark.parametrize("positions", Positions)
def test_04_restored_blocks_leave_the_cache_that_made_ones_leave(
    tiny_model: Model, make_lane: MakeLane, positions: Positions
) -> None:
    retention = Retention(9, 3, positions)

    def walked(held: dict[int, Tensor]) -> tuple[dict[int, Tensor], dict[tuple[int, int], Tensor]]:
        """The blocks that are made, where some are there already; and what is kept at last."""
        plan, same_plan = (schedule(tiny_model.spec, retention, blocks=5) for _ in range(2))
        lane = make_lane(plan, store=Store(held))
        *_, last = (task for task in same_plan if task.kind is Kind.COMMIT)
        return lane.walk().made, snapshot(lane, last)

    made, kept = walked({})
    again, kept_again = walked({block: made[block] for block in range(4)})
    assert list(again) == [4] and all(same(kept, kept_again).values())


def test_15_a_recache_rewrites_the_window_and_keeps_the_sink(lane: Any) -> None:
    lane.run(lane.now)
    before: dict[tuple[int, int], Tensor] = {}
    for task in lane.tasks:
        if task.kind is Kind.RECACHE:
            break
        lane.run(task)
        if task.kind is Kind.COMMIT:
            before = snapshot(lane, task)
    lane.run(task)
    kept = same(before, snapshot(lane, task))
    # The first layer's values see nothing but latents and noise level; prompts come in after it.
    assert {frame for layer, frame in kept if layer == 1 and kept[layer, frame]} == {0, 1, 2}
    assert task.frames == Span(9, 15)


def test_the_answer_for_a_block_is_settled_once(lane: Any) -> None:
    asked = (lane.now.frames, lane.now.context)
    assert lane.window.attention(*asked) is lane.window.attention(*asked)


def test_only_keys_that_will_move_are_kept_raw(tiny_model: Model) -> None:
    raw = {}
    for rule in Positions:
        retention = Retention(9, 3, rule)
        request = Request((Cue(0, "x"),), 5, 32, 32, 16)
        mesh = alone(torch.device("cpu"))
        transformer, spec = tiny_model.transformer, tiny_model.spec
        window = make_window(transformer, spec, retention, request, 21, mesh)
        for start in (0, 3, 6, 9, 12):
            frames = Span(start, start + 3)
            found = window.attention(frames, retention.context(frames))
        raw[rule] = found.raw
        assert (found.read_table is None) == (found.raw == 0)
        assert (found.write_table is None) == (rule is Positions.RELATIVE)
    everything = 9 * TOKENS
    assert raw == {
        Positions.ABSOLUTE: 0,
        Positions.RELATIVE: everything,
        Positions.SINK_REBASED: 3 * TOKENS,
    }
