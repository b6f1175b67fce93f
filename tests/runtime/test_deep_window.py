"""Deep Forcing's cache against a naive one that scores every token by every query in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.kernels.rotary import axis_dims
from longtake.parallel.mesh import alone
from longtake.runtime.deep_window import DeepWindow
from longtake.runtime.model import Model
from longtake.scheduler.deep_retention import DeepRetention
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.tally import Occupancy
from longtake.scheduler.task import Kind, Span, Task

TOKENS = 4  # of a frame, in two rows and columns
HEAD_DIM = 16
LAYERS = 2
MakeLane = Callable[..., Any]


def turned(x: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """Tokens, (B, S, H, HEAD_DIM), rotated by definition; a place is (time, token of a frame)."""
    angles = torch.zeros(len(places), HEAD_DIM // 2, dtype=torch.float64)
    time, token = torch.tensor(places, dtype=torch.float64).T
    pair = 0
    for dim, place in zip(
        axis_dims(HEAD_DIM), (time, token.div(2).floor(), token % 2), strict=True
    ):
        for i in range(dim // 2):
            angles[:, pair] = place * 10000.0 ** (-2 * i / dim)
            pair += 1
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    spun = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(spun).flatten(-2)


@dataclass
class Entry:
    """A token of one row of the batch: raw key and value, (H, D), and where it comes from."""

    key: Tensor
    value: Tensor
    frame: int
    token: int


@dataclass
class NaiveDeep:
    """Remembers every query, and keeps the entries of every layer and row in a list."""

    policy: DeepRetention
    kept: dict[tuple[int, int], list[Entry]] = field(default_factory=dict)
    queries: dict[tuple[int, int], dict[int, Tensor]] = field(default_factory=dict)
    begun: dict[tuple[int, int], int] = field(default_factory=dict)
    choices: dict[tuple[int, int], list[Entry]] = field(default_factory=dict)

    def prompt(self, text: Any) -> None: ...

    def occupancy(self) -> Occupancy:
        return Occupancy()

    def attention(self, frames: Span, context: tuple[Span, ...], rows: slice) -> NaiveAttention:
        return NaiveAttention(self, frames)


@dataclass
class NaiveAttention:
    window: NaiveDeep
    frames: Span

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = [self.row((layer, row), q[row], k[row], v[row]) for row in range(q.shape[0])]
        return torch.stack(rows).to(q.dtype)

    def row(self, at: tuple[int, int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        window, policy, size = self.window, self.window.policy, len(self.frames)
        past = window.kept.setdefault(at, [])
        queries = window.queries.setdefault(at, {})
        queries |= dict(zip(self.frames.frames(), q.split(TOKENS), strict=True))
        past[:] = [entry for entry in past if entry.frame < self.frames.start]
        if window.begun.get(at) != self.frames.start:
            window.begun[at] = self.frames.start
            if len(past) + size * TOKENS > policy.window * TOKENS:
                past[:] = self.choose(at, past, queries)
        places = [(slot // TOKENS, entry.token) for slot, entry in enumerate(past)]
        for index, frame in enumerate(self.frames.frames()):
            for token in range(TOKENS):
                i = index * TOKENS + token
                past.append(Entry(k[i], v[i], frame, token))
                places.append((len(past) // TOKENS - (token == TOKENS - 1), token))
        keys = turned(torch.stack([entry.key for entry in past])[None], places)[0]
        values = torch.stack([entry.value for entry in past]).double()
        own = turned(q[None], places[-size * TOKENS :])[0]
        scores = torch.einsum("qhd,khd->hqk", own, keys) / HEAD_DIM**0.5
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)

    def choose(
        self, at: tuple[int, int], past: list[Entry], queries: dict[int, Tensor]
    ) -> list[Entry]:
        policy = self.window.policy
        sink = past[: policy.sink * TOKENS]
        recent = past[len(past) - (policy.recent - len(self.frames)) * TOKENS :]
        middle = past[len(sink) : len(past) - len(recent)]
        first = len(past) // TOKENS - (policy.recent - len(self.frames))
        looks = [
            turned(queries[frame][None], [(first + i, token) for token in range(TOKENS)])[0]
            for i, frame in enumerate(range(self.frames.stop - policy.recent, self.frames.stop))
        ]
        scores = []
        for slot, entry in enumerate(middle):
            key = turned(entry.key[None, None], [(policy.sink + slot // TOKENS, entry.token)])[0, 0]
            scores.append(sum(float((query * key).sum()) for look in looks for query in look))
        order = sorted(range(len(middle)), key=lambda i: -scores[i])
        chosen = [middle[i] for i in sorted(order[: policy.chosen * TOKENS])]
        self.window.choices[at] = chosen
        return sink + chosen + recent


def schedule(model: Model, policy: DeepRetention, blocks: int, **more: Any) -> Schedule:
    seconds = model.spec.pixel_frames(blocks * model.spec.block_frames) / 16
    request = Request((Cue(0, "first"), Cue(seconds / 2, "second")), seconds, 32, 32, 16, **more)
    return Schedule(Causal(policy), request, model.spec, steps=2)


@pytest.fixture
def small(tiny_model: Model) -> Model:
    return replace(tiny_model, spec=replace(tiny_model.spec, block_frames=2))


def deep(model: Model, run: Schedule) -> DeepWindow:
    strategy = run.strategy
    assert isinstance(strategy, Causal) and isinstance(strategy.retention, DeepRetention)
    total = strategy.latent_frames(run.request, model.spec)
    mesh = alone(torch.device("cpu"))
    return DeepWindow(model.transformer, model.spec, strategy.retention, total, run.request, mesh)


@pytest.mark.parametrize(
    ("policy", "guidance"),
    [
        (DeepRetention(8, 7, 2, 3), 1.0),
        (DeepRetention(8, 7, 2, 3), 3.0),
        (DeepRetention(9, 5, 1, 2), 1.0),
        (DeepRetention(5, 5, 0, 2), 1.0),
        (DeepRetention(6, 6, 2, 4), 1.0),
    ],
)
def test_a_run_equals_the_naive_one(
    small: Model, make_lane: MakeLane, policy: DeepRetention, guidance: float
) -> None:
    """Every choice of every layer and row, in place and order, over several rounds."""
    naive = NaiveDeep(policy)
    run = schedule(small, policy, 9, guidance=guidance)
    expected = make_lane(run, window=naive).walk().latents
    run = schedule(small, policy, 9, guidance=guidance)
    made = make_lane(run, window=deep(small, run)).walk().latents
    torch.testing.assert_close(made, expected, atol=5e-5, rtol=0)
    if policy == DeepRetention(8, 7, 2, 3):  # the case is not a trivial one
        first, second = (
            {(entry.frame, entry.token) for entry in naive.choices[layer, 0]}
            for layer in range(LAYERS)
        )
        assert first != second and len(first) == len(second) == 2 * TOKENS
        frames = {frame for frame, _ in first | second}
        assert min(frames) < 8, "no token has been chosen more than once"


@pytest.fixture
def lane(small: Model, make_lane: MakeLane) -> Iterator[Any]:
    """A lane at the first step of block 4, which chooses."""
    run = schedule(small, DeepRetention(8, 7, 2, 3), 7)
    lane = make_lane(run, window=deep(small, run))
    lane.tasks = iter(lane.schedule)
    for task in lane.tasks:
        lane.now = task
        if (task.kind, task.block) == (Kind.DENOISE, 4):
            break
        lane.run(task)
    return lane


def slots(lane: Any, stop: int) -> Tensor:
    """Keys and values of the first slots, (layers, 2, 1, tokens, H, D)."""
    both = [torch.stack(lane.window.cache.read(layer, Span(0, stop))) for layer in range(LAYERS)]
    return torch.stack(both).clone()


def test_a_choice_keeps_exactly_the_budget(lane: Any) -> None:
    assert lane.now.selects and lane.window.taken(lane.now.frames) == 5
    before = slots(lane, 8)
    lane.run(lane.now)
    after = slots(lane, 7)
    for layer in range(LAYERS):
        old = [token.tolist() for token in before[layer, 0, 0].flatten(1)]
        new = [token.tolist() for token in after[layer, 0, 0].flatten(1)]
        origin = [old.index(token) for token in new[: 5 * TOKENS]]
        assert origin[: 2 * TOKENS] == [*range(2 * TOKENS)], "the sink moved"
        assert origin[4 * TOKENS :] == [*range(7 * TOKENS, 8 * TOKENS)], "what is recent is gone"
        chosen = origin[2 * TOKENS : 4 * TOKENS]
        assert chosen == sorted(set(chosen)) and len(chosen) == 2 * TOKENS
        assert chosen[0] >= 2 * TOKENS and chosen[-1] < 7 * TOKENS
        assert len({tuple(token) for token in new}) == 7 * TOKENS
        assert torch.equal(after[layer, 1, 0, : 5 * TOKENS], before[layer, 1, 0, origin])


def test_02_a_choice_holds_for_all_steps_and_the_commit(lane: Any) -> None:
    lane.run(lane.now)
    kept = slots(lane, 5)
    for task in lane.tasks:
        if task.block == 5:
            break
        lane.run(task)
        assert torch.equal(slots(lane, 5), kept)


def test_05_the_sink_is_never_forgotten(lane: Any) -> None:
    sink = slots(lane, 2)
    lane.run(lane.now)
    for task in lane.tasks:
        lane.run(task)
    assert torch.equal(slots(lane, 2), sink)


def test_26_two_requests_do_not_disturb_each_other(small: Model, make_lane: MakeLane) -> None:
    def begin(seed: int) -> tuple[Any, Iterator[Task]]:
        run = schedule(small, DeepRetention(8, 7, 2, 3), 6, seed=seed)
        lane = make_lane(run, window=deep(small, run))
        return lane, iter(run)

    alone_made = []
    for seed in (1, 2):
        lane, tasks = begin(seed)
        for task in tasks:
            lane.run(task)
        alone_made.append(lane.store.latents)
    (first, ones), (second, others) = begin(1), begin(2)
    for one, other in zip(ones, others, strict=True):
        first.run(one)
        second.run(other)
    assert torch.equal(first.store.latents, alone_made[0])
    assert torch.equal(second.store.latents, alone_made[1])
