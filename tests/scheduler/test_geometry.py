"""Frames, blocks and sizes: round trips, and the sizes that are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec

WAN = ModelSpec(
    layers=30,
    heads=12,
    head_dim=128,
    ffn_dim=8960,
    latent_channels=16,
    patch=2,
    rotary_rows=1024,
    block_frames=3,
)
strides = st.integers(1, 8)


@given(st.integers(1, 10_000), strides)
def test_latent_frames_are_the_fewest_that_hold_the_pixel_frames(pixels: int, stride: int) -> None:
    spec = replace(WAN, temporal_stride=stride)
    latents = spec.latent_frames(pixels)
    assert spec.pixel_frames(latents) >= pixels > spec.pixel_frames(latents - 1)


@given(st.integers(1, 3_000), strides)
def test_latent_frames_survive_the_way_to_pixels_and_back(latents: int, stride: int) -> None:
    spec = replace(WAN, temporal_stride=stride)
    assert spec.latent_frames(spec.pixel_frames(latents)) == latents


def test_wan_shows_81_frames_for_21_latent_frames() -> None:
    assert WAN.pixel_frames(21) == 81
    assert [WAN.pixel_frames(n) for n in range(4)] == [0, 1, 5, 9]


@given(st.integers(0, 2_000), strides, st.integers(1, 6))
def test_a_prompt_waits_for_the_next_block(frame: int, stride: int, block_frames: int) -> None:
    spec = replace(WAN, temporal_stride=stride, block_frames=block_frames)
    block = spec.first_block_from(frame)
    assert spec.pixel_frames(block * block_frames) >= frame
    assert block == 0 or spec.pixel_frames((block - 1) * block_frames) < frame


def test_the_grid_counts_patches() -> None:
    assert WAN.grid(480, 832) == (30, 52)


@pytest.mark.parametrize(("height", "width"), [(0, 16), (16, -16), (24, 32), (32, 40), (8, 16)])
def test_sizes_that_cannot_be_tiled_are_refused(height: int, width: int) -> None:
    with pytest.raises(UserError, match=rf"^size {width}x{height} .* multiples of 16 pixels$"):
        WAN.grid(height, width)
