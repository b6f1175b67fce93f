"""Noise is a function of (seed, block, step) alone."""

from __future__ import annotations

import itertools

import pytest
import torch

from longtake.runtime.noise import PooledNoise, RescheduledNoise, SeededNoise
from longtake.scheduler.errors import UserError

SHAPE = (1, 4, 3, 8, 8)


def test_12_it_does_not_depend_on_what_was_drawn_before() -> None:
    forwards, backwards = SeededNoise(5), SeededNoise(5)
    draws = list(itertools.product(range(3), [None, 0, 1]))

    def draw(noise: SeededNoise, block: int, step: int | None) -> torch.Tensor:
        if step is None:
            return noise.initial(block, SHAPE)
        return noise.renoise(block, step, SHAPE)

    first = {at: draw(forwards, *at) for at in draws}
    torch.manual_seed(99)
    second = {at: draw(backwards, *at) for at in reversed(draws)}
    assert all(torch.equal(first[at], second[at]) for at in draws)


def test_it_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    SeededNoise(0).initial(0, SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_blocks_and_steps_are_independent() -> None:
    draws = [
        noise
        for seed in (0, 1, -1, 2**63, 11)
        for block in (0, 1, 11)
        for noise in (
            SeededNoise(seed).initial(block, SHAPE),
            SeededNoise(seed).renoise(block, 0, SHAPE),
            SeededNoise(seed).renoise(block, 1, SHAPE),
        )
    ]
    correlations = torch.corrcoef(torch.stack([draw.flatten() for draw in draws]))
    correlations.fill_diagonal_(0)
    assert (
        correlations.abs().max() < 0.2
    )  # 1 if two were the same; 4.6 sigma of 768 numbers is 0.17


def test_it_is_standard_normal() -> None:
    noise = SeededNoise(3).initial(0, (1, 16, 3, 60, 104))
    assert noise.dtype == torch.float32
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)


def frames_of(noise: torch.Tensor) -> list[bytes]:
    return [frame.numpy().tobytes() for frame in noise.unbind(2)]


def test_rescheduled_noise_shuffles_runs_of_the_first_clip() -> None:
    noise = RescheduledNoise(5, unit=3)
    shape = (1, 4, 8, 2, 2)
    first = noise.initial(0, shape)
    runs = [set(frames_of(part)) for part in first.split(3, dim=2)]
    assert sum(map(len, runs)) == 8
    for block in range(1, 4):
        later = noise.initial(block, shape)
        assert [set(frames_of(part)) for part in later.split(3, dim=2)] == runs
        assert not torch.equal(later, first)
        assert torch.equal(later, RescheduledNoise(5, unit=3).initial(block, shape))
    shorter = noise.initial(2, (1, 4, 7, 2, 2))
    assert set(frames_of(shorter)) == set(frames_of(first)[:7])


def test_rescheduled_noise_repeats_a_window_within_a_block() -> None:
    noise = RescheduledNoise(5, unit=3, window=6).initial(0, (1, 4, 20, 2, 2))
    window, *later = noise.split(6, dim=2)
    assert len(set(frames_of(window))) == 6
    for part in later:
        assert part.shape[2] < 6 or not torch.equal(part, window)
        for run, first in zip(part.split(3, dim=2), window.split(3, dim=2), strict=False):
            assert set(frames_of(run)) <= set(frames_of(first))
    short = RescheduledNoise(5, unit=3, window=6).initial(0, (1, 4, 4, 2, 2))
    assert torch.equal(short, window[:, :, :4])


def test_noise_can_be_shuffled_in_runs_of_frames_only() -> None:
    with pytest.raises(UserError, match="in runs of at least 1 latent frame, got 0"):
        RescheduledNoise(5, unit=0)


def test_dual_16_pooled_noise_has_each_frame_once_in_a_block_and_its_context() -> None:
    """In all, no block has other frames than the first."""
    noise = PooledNoise(5, 4, 2)
    pool = noise.initial(0, (1, 4, 6, 8, 8))
    video = pool
    for block in range(1, 30):
        video = torch.cat([video, noise.initial(block, (1, 4, 4, 8, 8))], dim=2)
        seen = video[0, :, -6:].transpose(0, 1).flatten(1)
        matches = torch.cdist(seen, pool[0].transpose(0, 1).flatten(1)) == 0
        assert torch.equal(matches.sum(0), torch.ones(6)) and torch.equal(
            matches.sum(1), torch.ones(6)
        )
    orders = {tuple(video[0, 0, 6 + 4 * b : 10 + 4 * b, 0, 0].tolist()) for b in range(29)}
    assert len(orders) > 20


def test_dual_16_pooled_noise_does_not_depend_on_what_was_drawn_before() -> None:
    forwards, backwards = PooledNoise(5, 4, 2), PooledNoise(5, 4, 2)
    shapes = {0: (1, 4, 6, 8, 8)} | dict.fromkeys(range(1, 8), (1, 4, 4, 8, 8))
    first = {block: forwards.initial(block, shape) for block, shape in shapes.items()}
    for block in (7, 3, 3, 0, 5):
        assert torch.equal(backwards.initial(block, shapes[block]), first[block])
    cut = backwards.initial(5, (1, 4, 3, 8, 8))
    assert torch.equal(cut, first[5][:, :, :3])
    assert not torch.equal(PooledNoise(6, 4, 2).initial(0, shapes[0]), first[0])
