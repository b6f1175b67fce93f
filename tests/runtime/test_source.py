"""What blocks begin from: an input video with noise in it, less where it moves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch

from longtake.parallel.mesh import alone
from longtake.runtime.noise import SeededNoise
from longtake.runtime.samplers import FewStep, Sampler, Solver
from longtake.runtime.source import (
    Frame,
    Mixing,
    NoiseSource,
    SharedSource,
    VideoSource,
    at_rate,
    largest_change,
    to_pixels,
)
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec

SPEC = ModelSpec(2, 2, 8, 16, 3, 2, 1024, block_frames=2)
NOISE = SeededNoise(3)
SIZE = (32, 16)
EULER = Solver("FlowMatchEulerDiscreteScheduler", 4, {"shift": 3.0}, torch.device("cpu"))


def grays(*levels: int) -> list[Frame]:
    return [np.full((16, 32, 3), level, np.uint8) for level in levels]


def mean_of_all(pixels: torch.Tensor) -> torch.Tensor:
    """Stands for an encoder: the mean of the frames of a latent one, as small as latents."""
    return pixels.mean(2, keepdim=True)[..., ::8, ::8]


def source(frames: list[Frame] | Iterator[Frame], mixing: Mixing | None = None) -> VideoSource:
    return VideoSource(frames, mean_of_all, NOISE, SPEC, SIZE, mixing or Mixing())


def test_a_block_begins_from_its_frames_with_noise_in_them() -> None:
    made = source(grays(*range(13)), Mixing(motion=0))
    for block, shown in ((0, (0, 2.5)), (1, (6.5, 10.5))):  # 1 + 4 frames, then 4 + 4
        shape = (1, 3, 2, 2, 4)
        video = torch.tensor(shown).view(1, 1, 2, 1, 1) / 127.5 - 1
        true = 0.8 * NOISE.initial(block, shape) + 0.2 * video
        torch.testing.assert_close(made.latents(block, shape), true.expand(shape))


def test_frames_are_taken_as_blocks_need_them_and_the_last_one_fills_up() -> None:
    taken = 0

    def frames() -> Iterator[Frame]:
        nonlocal taken
        for frame in grays(*range(7)):
            taken += 1
            yield frame

    made = source(frames(), Mixing(motion=0))
    assert taken == 0
    assert made.ready(0) and made.ready(0) and taken == 5
    assert made.ready(1) and taken == 7
    assert not made.ready(2)
    made.latents(0, (1, 3, 2, 2, 4))
    noisy = made.latents(1, (1, 3, 2, 2, 4)) - 0.8 * NOISE.initial(1, (1, 3, 2, 2, 4))
    levels = (noisy / 0.2 + 1) * 127.5
    torch.testing.assert_close(levels[0, 0, :, 0, 0], torch.tensor([5.75, 6.0]), atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="no frames for block 2"):
        made.latents(2, (1, 3, 2, 2, 4))
    with pytest.raises(ValueError, match="frames of block 1 are not the next ones"):
        made.timestep(1)


def test_motion_is_the_largest_change_of_a_frame_that_before_the_block_included() -> None:
    pixels = torch.zeros(3, 4, 2, 2)
    pixels[:, 2, 0, 0] = 0.3
    assert largest_change(pixels) == pytest.approx(0.15)
    still, moving = grays(0, 0, 0, 0, 0), grays(0, *[255] * 7)
    shares = [0.8]
    for change in (0.0, 0.2, 0.0):  # of the frames below: none; a leap inside; one before the block
        shares.append(0.9 * (0.8 - 0.1 * min(change / 0.2, 1)) + 0.1 * shares[-1])
    made = source([*still, *grays(*[0] * 8), *moving, *grays(*[255] * 8)])
    told = [made.timestep(block) for block in range(4)]
    assert told == [float(int(1000 * share)) for share in shares]
    leap = source([*still, *grays(*[255] * 8)])
    assert [leap.timestep(block) for block in (0, 1)] == [800.0, 710.0]
    released = source([*still, *grays(*[255] * 8)], Mixing(told_less=100))
    assert [released.timestep(block) for block in (0, 1)] == [700.0, 610.0]


@pytest.mark.parametrize(
    ("mixing", "complaint"),
    [
        ({"noise_scale": 0.0}, "noise_scale must be within 0 .. 1, got 0"),
        ({"motion": 0.8}, r"motion must be at least 0 and less than noise_scale \(0.8\), got 0.8"),
        ({"told_less": 700}, "told_less must be within 0 .. 699, got 700"),
    ],
)
def test_impossible_mixtures_are_refused(mixing: dict[str, float], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Mixing(**mixing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rate", "fps", "shown"),
    [
        (10, 10, [0, 1, 2, 3, 4, 5]),
        (10, 20, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (24, 16, [0, 1, 3, 4]),
        (29.97, 16, [0, 1, 3, 5]),
    ],
)
def test_frames_at_another_rate_are_those_shown_at_each_time(
    rate: float, fps: float, shown: list[int]
) -> None:
    made = [int(frame[0, 0, 0]) for frame in at_rate(grays(*range(6)), rate, fps)]
    assert made == shown and len(made) == -(-6 * fps // rate)


def test_pictures_of_another_size_are_cut_around_their_middle() -> None:
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, 16:48] = 255
    assert to_pixels(wide, SIZE).shape == (3, 16, 32)
    assert to_pixels(wide, SIZE).min() == 1
    with pytest.raises(UserError, match=r"must be \(height, width, 3\) uint8 RGB, got \(4, 4\)"):
        to_pixels(np.zeros((4, 4), np.uint8), SIZE)


@pytest.mark.parametrize("sampler", [FewStep((1000, 750, 500), 5.0), EULER], ids=type)
def test_a_sampler_that_starts_lower_takes_as_many_falling_steps_to_a_clean_end(
    sampler: Sampler,
) -> None:
    first, clean = 950.0, torch.full((1, 1, 2, 2), 0.3)
    late = sampler.starting_at(first)
    told = late.timesteps
    assert told[0] == pytest.approx(first) and len(told) == len(sampler.timesteps)
    assert all(a > b for a, b in pairwise(told))
    assert sampler.timesteps[0] == 1000  # is left as it was
    solver = late.begin(0, NOISE)
    noise = NOISE.initial(0, (1, 1, 2, 2))
    x = 0.95 * noise + 0.05 * clean
    for step, timestep in enumerate(told):
        x = solver.step(step, x, (x - clean) / (timestep / 1000))
    torch.testing.assert_close(x, clean, atol=2e-3, rtol=0)  # levels come out of a table


def test_a_first_step_below_the_second_is_refused() -> None:
    with pytest.raises(UserError, match=r"first step at 700 must be above the second .* at 750;"):
        FewStep((1000, 750), 5.0, warp=False).starting_at(700)


def test_rank_0_alone_has_a_source() -> None:
    mesh = alone(torch.device("cpu"))
    with pytest.raises(ValueError, match="rank 0 has the source"):
        SharedSource(mesh, None)
    shared = SharedSource(mesh, NoiseSource(NOISE))
    assert shared.ready(9) and shared.timestep(0) is None
    assert torch.equal(shared.latents(4, (1, 2)), NOISE.initial(4, (1, 2)))
