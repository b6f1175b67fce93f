"""Noise is a function of (seed, block, step) alone."""

from __future__ import annotations

import itertools

import pytest
import torch

from longtake.runtime.noise import SeededNoise

SHAPE = (1, 4, 3, 8, 8)


def test_it_does_not_depend_on_what_was_drawn_before() -> None:
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
