"""On an NVIDIA GPU: Wan 2.1's 1.3B shape at its native size, in bfloat16, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from longtake.kernels.rotary import rotary_table
from longtake.parallel.mesh import alone
from longtake.parallel.sequence import SequenceParallel
from longtake.runtime.contexts import JointAttention, Window
from longtake.runtime.kv_cache import KVCache
from longtake.runtime.wan_transformer import Attention, WanTransformer
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.task import Span

pytestmark = pytest.mark.gpu

GRID = (30, 52)  # of 480x832 pixels
FRAMES, BLOCK = 21, 3
HEADS, HEAD_DIM = 12, 128


def build(layers: int) -> WanTransformer:
    """Random weights of the same seed and shape, in bfloat16 as the loader leaves them."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        module = WanTransformer3DModel(
            num_layers=layers, num_attention_heads=HEADS, ffn_dim=8960
        ).requires_grad_(False)
    for name, parameter in module.named_parameters():
        if not any(part in name for part in WanTransformer3DModel._keep_in_fp32_modules):
            parameter.data = parameter.data.bfloat16()
    return WanTransformer(module.eval())


@pytest.fixture(scope="module")
def transformer() -> WanTransformer:
    return build(layers=30)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def latents(frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(1, 16, frames, 2 * GRID[0], 2 * GRID[1], generator=generator).cuda()


def forward(transformer: WanTransformer, x: Tensor, attention: Attention) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    text = transformer.text_keys(torch.randn(1, 512, 4096, generator=generator))
    hidden = transformer.embed(x, torch.full((1, 1), 500.0, device="cuda"))
    layers = transformer.module.config.num_layers
    return transformer.head(transformer.layers(hidden, 0, layers, attention, text))


def joint(frames: int) -> JointAttention:
    table = rotary_table(range(frames), *GRID, HEAD_DIM, torch.device("cuda"))
    return JointAttention(sequence(), frames, table)


def sequence() -> SequenceParallel:
    return SequenceParallel(alone(torch.device("cuda")), GRID[0] * GRID[1])


def window_of(layers: int, positions: Positions) -> tuple[Window, Retention]:
    retention = Retention(FRAMES, BLOCK, positions)
    capacity = FRAMES * GRID[0] * GRID[1]
    device = torch.device("cuda")
    cache = KVCache(range(layers), capacity, 1, HEADS, HEAD_DIM, device, torch.bfloat16)
    return Window(cache, retention, GRID, HEAD_DIM, device, sequence()), retention


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any operation in which the host waits for the device is an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_a_joint_forward_of_81_frames(transformer: WanTransformer) -> None:
    flow = forward(transformer, latents(FRAMES), joint(FRAMES))
    assert (flow.shape, flow.dtype) == ((1, 16, FRAMES, 60, 104), torch.bfloat16)
    assert flow.isfinite().all()


@pytest.mark.parametrize("positions", Positions)
def test_a_causal_block_over_a_full_window(
    transformer: WanTransformer, positions: Positions
) -> None:
    """Nine blocks, so that the window of seven is full and has wrapped around."""
    window, retention = window_of(30, positions)
    flow = torch.empty(0)
    for start in range(0, 9 * BLOCK, BLOCK):
        frames = Span(start, start + BLOCK)
        attention = window.attention(frames, retention.context(frames))
        flow = forward(transformer, latents(BLOCK), attention)
    assert (flow.shape, flow.dtype) == ((1, 16, BLOCK, 60, 104), torch.bfloat16)
    assert flow.isfinite().all()


@pytest.mark.parametrize("positions", Positions)
def test_28_layers_never_wait_for_the_device(positions: Positions) -> None:
    transformer = build(layers=2)
    window, retention = window_of(2, positions)
    for start in range(0, 9 * BLOCK, BLOCK):
        frames = Span(start, start + BLOCK)
        attention: Any = window.attention(frames, retention.context(frames))
        forward(transformer, latents(BLOCK), attention)
    x, levels = latents(BLOCK), torch.full((1, 1), 500.0, device="cuda")
    text = transformer.text_keys(torch.ones(1, 512, 4096))
    with no_waiting():
        hidden = transformer.layers(transformer.embed(x, levels), 0, 2, attention, text)
        transformer.head(hidden)
    with pytest.raises(RuntimeError, match="synchroniz"), no_waiting():
        hidden.tokens.sum().item()


def test_01_a_first_block_over_the_cache_is_joint(transformer: WanTransformer) -> None:
    window, _ = window_of(30, Positions.ABSOLUTE)
    cached = forward(transformer, latents(BLOCK), window.attention(Span(0, BLOCK), ()))
    expected = forward(transformer, latents(BLOCK), joint(BLOCK))
    assert (cached - expected).abs().max() <= 0.02 * expected.abs().max()


def test_bfloat16_stays_near_float32() -> None:
    low = build(layers=2)
    made = forward(low, latents(BLOCK), joint(BLOCK)).float()
    exact = forward(WanTransformer(low.module.float()), latents(BLOCK), joint(BLOCK))
    error = (made - exact).norm() / exact.norm()
    assert exact.dtype == torch.float32
    assert 0 < error < 0.02
