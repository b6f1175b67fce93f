"""Ulysses, ring and both equal attention in one process, whatever the shares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.kernels.attention import attention
from longtake.parallel.mesh import Rendezvous, alone, open_mesh
from longtake.parallel.sequence import SequenceParallel
from longtake.scheduler.degrees import Degrees

CPU = torch.device("cpu")
FRAMES, PAST, BATCH, HEADS, WIDTH = 2, 3, 2, 12, 16
PLANS = [
    Degrees(ring=ring, ulysses=ulysses)
    for ring in range(1, 5)
    for ulysses in range(1, 5)
    if 1 < ring * ulysses <= 4
]


def case(tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v of some frames, and keys and values of the past."""
    draw = torch.Generator().manual_seed(tokens)

    def some(frames: int) -> Tensor:
        return torch.randn(BATCH, frames * tokens, HEADS, WIDTH, generator=draw) * 2

    return some(FRAMES), some(FRAMES), some(FRAMES), some(PAST), some(PAST)


def expected(tokens: int) -> Tensor:
    q, k, v, past_k, past_v = case(tokens)
    return attention(q, torch.cat([past_k, k], 1), torch.cat([past_v, v], 1))


def attend(meeting: Rendezvous, degrees: Degrees, sizes: list[int]) -> list[Tensor]:
    with open_mesh(meeting, degrees, CPU) as mesh:
        return [attend_once(SequenceParallel(mesh, tokens), tokens) for tokens in sizes]


def attend_once(sequence: SequenceParallel, tokens: int) -> Tensor:
    q, k, v, past_k, past_v = (sequence.split(x) for x in case(tokens))
    _, past_k, past_v = sequence.to_heads(past_k, past_k, past_v, PAST)
    q, k, v = sequence.to_heads(q, k, v, FRAMES)
    keys, values = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
    out = sequence.attend(q, keys, values, PAST + FRAMES)
    return sequence.gather(sequence.to_tokens(out, FRAMES), FRAMES)


@pytest.mark.parametrize("degrees", PLANS, ids=Degrees.describe)
def test_23_shared_attention_equals_one_worker(workers: Any, degrees: Degrees) -> None:
    world = degrees.world
    sizes = [*range(1, world), *range(2 * world, 3 * world)]  # some without tokens, all remainders
    answers = workers.run(world, attend, degrees, sizes)
    for index, tokens in enumerate(sizes):
        want = expected(tokens)
        for answer in answers:
            torch.testing.assert_close(answer[index], want, rtol=1e-5, atol=1e-5)
            assert torch.equal(answer[index], answers[0][index])


def test_one_worker_copies_nothing() -> None:
    sequence = SequenceParallel(alone(CPU), 5)
    q, k, v, _, _ = case(5)
    assert sequence.split(q) is q
    assert sequence.gather(q, FRAMES) is q and sequence.to_tokens(q, FRAMES) is q
    assert all(a is b for a, b in zip(sequence.to_heads(q, k, v, FRAMES), (q, k, v), strict=True))
    assert torch.equal(sequence.attend(q, k, v, FRAMES), attention(q, k, v))


def misuse(meeting: Rendezvous) -> None:
    with open_mesh(meeting, Degrees(ulysses=2), CPU) as mesh:
        sequence = SequenceParallel(mesh, 3)
        x = torch.zeros(1, 2 * len(sequence.own), 3, 4)
        with pytest.raises(ValueError, match="2 workers can't share 3 heads evenly"):
            sequence.to_heads(x, x, x, 2)
        with pytest.raises(ValueError, match="tokens are not 5 frames of the"):
            sequence.gather(x, 5)


def test_heads_and_frames_must_fit(workers: Any) -> None:
    workers.run(2, misuse)
