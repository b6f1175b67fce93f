"""MemFlow's bank against a naive one that keeps all frames and scores in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.kernels.rotary import rotary_table, rotate
from longtake.parallel.mesh import alone
from longtake.runtime.bank_window import BankWindow
from longtake.runtime.model import Model
from longtake.scheduler.bank_retention import BankRetention
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.tally import Occupancy
from longtake.scheduler.task import Span

TOKENS, HEADS, HEAD_DIM = 4, 2, 16
CPU = torch.device("cpu")
MakeLane = Callable[..., Any]


@dataclass
class NaiveBank:
    """Keeps every frame's raw keys and values, and which frames are banked, by layer and row."""

    policy: BankRetention
    block: int
    text: Any = None
    frames: dict[tuple[int, int], dict[int, tuple[Tensor, Tensor]]] = field(default_factory=dict)
    banks: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    locals: dict[tuple[int, int], int] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)

    def prompt(self, text: Any) -> None:
        self.text = text

    def occupancy(self) -> Occupancy:
        return Occupancy()

    def attention(self, frames: Span, context: tuple[Span, ...], rows: slice) -> NaiveAttention:
        return NaiveAttention(self, frames)

    def slide(self, at: tuple[int, int], stop: int) -> list[int]:
        """The frames seen besides the local window, and those of it, in order."""
        policy, bank = self.policy, self.banks.setdefault(at, [])
        start = max(policy.sink, stop - (policy.window - policy.sink - policy.bank))
        for frame in range(self.locals.get(at, policy.sink), start):
            if frame % (self.block * policy.every) == 0:
                if len(bank) == policy.bank:
                    worst = min(bank, key=lambda kept: self.score(at, kept))
                    bank.remove(worst)
                    self.dropped.add(worst)
                bank.append(frame)
        self.locals[at] = start
        return [*range(min(policy.sink, stop)), *bank]

    def score(self, at: tuple[int, int], frame: int) -> float:
        layer, row = at
        asked = self.text.layer(layer)[0][row].double()
        keys = self.frames[at][frame][0].double()
        return float(torch.einsum("thd,khd->", asked, keys))


@dataclass
class NaiveAttention:
    window: NaiveBank
    span: Span

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = [self.row((layer, row), q[row], k[row], v[row]) for row in range(q.shape[0])]
        return torch.stack(rows).to(q.dtype)

    def row(self, at: tuple[int, int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        window, stop = self.window, self.span.stop
        kept = window.frames.setdefault(at, {})
        memory = window.slide(at, stop)
        new = zip(self.span.frames(), k.split(TOKENS), v.split(TOKENS), strict=True)
        kept |= {frame: (keys, values) for frame, keys, values in new}
        seen = [*memory, *range(window.locals[at], stop)]
        table = rotary_table(range(len(seen)), 2, 2, HEAD_DIM, CPU)
        keys = rotate(torch.cat([kept[frame][0] for frame in seen])[None], table)[0].double()
        values = torch.cat([kept[frame][1] for frame in seen]).double()
        first = seen.index(self.span.start) * TOKENS
        own = rotate(q[None], table[first : first + len(q)])[0].double()
        out = torch.empty_like(own)
        for head in range(q.shape[1]):
            local = range(len(memory) * TOKENS, len(keys))
            use = [*self.active(own[:, head], keys[:, head], memory), *local]
            scores = own[:, head] @ keys[use, head].T / HEAD_DIM**0.5
            out[:, head] = scores.softmax(-1) @ values[use, head]
        return out

    def active(self, queries: Tensor, keys: Tensor, memory: list[int]) -> list[int]:
        policy, count = self.window.policy, len(memory)
        slots = [*range(count)]
        if policy.active is not None and self.span.stop > policy.window - policy.bank:
            means = keys[: count * TOKENS].unflatten(0, (count, TOKENS)).mean(1)
            near = (means @ queries.mean(0)).tolist()
            slots = sorted(sorted(slots, key=lambda i: -near[i])[: policy.active])
        return [slot * TOKENS + token for slot in slots for token in range(TOKENS)]


def schedule(model: Model, policy: BankRetention, blocks: int, **more: Any) -> Schedule:
    def starts(block: int) -> float:
        return model.spec.pixel_frames(block * model.spec.block_frames) / 16

    cues = (Cue(0, "first"), Cue(starts(5), "second"))
    request = Request(cues, starts(blocks), 32, 32, 16, **more)
    return Schedule(Causal(policy), request, model.spec, steps=2)


@pytest.fixture
def small(tiny_model: Model) -> Model:
    return replace(tiny_model, spec=replace(tiny_model.spec, block_frames=2))


def bank(model: Model, policy: BankRetention, run: Schedule) -> BankWindow:
    mesh = alone(CPU)
    return BankWindow(model.transformer, model.spec, policy, None, run.request, mesh)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(
    "policy",
    [
        BankRetention(7, 1, 2, 1),
        BankRetention(7, 1, 2, 1, active=2),
        BankRetention(8, 3, 1, 2, recache=False),
        BankRetention(6, 0, 2, 1, active=1),
    ],
)
def test_a_run_equals_the_naive_one(
    small: Model, make_lane: MakeLane, policy: BankRetention, guidance: float
) -> None:
    """Every choice of every layer and row, and a switch of prompt in the middle."""
    naive = NaiveBank(policy, 2)
    expected = make_lane(schedule(small, policy, 10, guidance=guidance), window=naive).walk()
    run = schedule(small, policy, 10, guidance=guidance)
    made = make_lane(run, window=bank(small, policy, run)).walk()
    torch.testing.assert_close(made.latents, expected.latents, atol=5e-5, rtol=0)
    assert naive.dropped, "the bank was never full"


@dataclass
class Asked:
    """A prompt whose text keys all point one way, (1, 5, HEADS, HEAD_DIM)."""

    way: Tensor

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        keys = self.way.expand(1, 5, HEADS, HEAD_DIM)
        return keys, keys


def banked(window: BankWindow, policy: BankRetention) -> list[int]:
    """The frames in the bank; their values tell."""
    slots = Span(policy.sink, policy.sink + policy.bank)
    values = window.cache.read(0, slots)[1][0, ::TOKENS, 0, 0]
    return [round(float(value)) for value in values]


@pytest.mark.parametrize(("switch", "survivor"), [(99, 6), (20, 14)])
def test_what_the_prompt_asks_for_survives(small: Model, switch: int, survivor: int) -> None:
    """Frames 6 and 14 are what two prompts ask for, all others are noise; the newest is kept."""
    policy = BankRetention(8, 2, 2, 1)
    request = Request((Cue(0, "x"),), 9, 32, 32, 16)
    window = BankWindow(small.transformer, small.spec, policy, None, request, alone(CPU))
    torch.manual_seed(0)
    first, second = torch.randn(2, HEAD_DIM)
    second -= first * (first @ second) / (first @ first)
    planted = {6: 5 * first, 14: 5 * second}
    for start in range(0, 40, 2):
        window.prompt(Asked(first if start < switch else second))  # type: ignore[arg-type]
        q, k = torch.randn(2, 1, 2 * TOKENS, HEADS, HEAD_DIM)
        k[:, :TOKENS] += planted.get(start, torch.zeros(HEAD_DIM))
        v = torch.tensor([start, start + 1.0]).repeat_interleave(TOKENS)
        v = v[None, :, None, None].expand_as(k)
        for _ in range(2):  # the second time, nothing changes
            window.attention(Span(start, start + 2), ()).attend(0, q, k, v)
            if start >= 20:
                assert banked(window, policy) == [survivor, start - 4]
