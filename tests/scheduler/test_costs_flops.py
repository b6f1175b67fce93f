"""FLOPs and weights reckoned from shapes are those that torch counts over the real modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tests.runtime.vaes import RESIDUAL
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import UMT5Config, UMT5EncoderModel

from longtake.runtime.wan_vae import DecodeStream, EncodeStream
from longtake.scheduler import flops
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.known_models import WAN_1_3B, WAN_14B
from longtake.scheduler.shapes import TextShape, VaeShape

META = torch.device("meta")
SMALL = replace(
    ModelSpec(3, 4, 24, 200, 6, 2, 1024, 3), text_tokens=20, text=replace(TextShape(), width=40)
)
WAN_2_2 = {
    **RESIDUAL,
    "base_dim": 16,
    "decoder_base_dim": 24,
    "latents_mean": [0.0] * 8,
    "latents_std": [1.0] * 8,
}
VAES = {
    "wan 2.1": ({}, VaeShape()),
    "wan 2.2": (WAN_2_2, VaeShape(16, 24, (1, 2, 2), 1, 8, (True, True), 2, True)),
}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def transformer(spec: ModelSpec) -> WanTransformer3DModel:
    with META:
        return WanTransformer3DModel(
            num_layers=spec.layers,
            num_attention_heads=spec.heads,
            attention_head_dim=spec.head_dim,
            ffn_dim=spec.ffn_dim,
            in_channels=spec.latent_channels,
            out_channels=spec.latent_channels,
            text_dim=spec.text.width,
        )


@pytest.mark.parametrize(
    ("spec", "frames", "rows", "columns"),
    [(SMALL, 5, 3, 4), (WAN_1_3B, 21, 30, 52)],
    ids=["small", "wan 1.3b, 480p"],
)
def test_a_forward(spec: ModelSpec, frames: int, rows: int, columns: int) -> None:
    module = transformer(spec)
    latents = (1, spec.latent_channels, frames, rows * spec.patch, columns * spec.patch)
    with FlopCounterMode(display=False) as counter:
        module(
            torch.empty(latents, device=META),
            timestep=torch.empty(1, device=META),
            encoder_hidden_states=torch.empty(1, spec.text_tokens, spec.text.width, device=META),
        )
    tokens = frames * rows * columns
    reckoned = flops.forward_flops(spec, tokens) + flops.text_flops(spec, spec.layers)
    assert reckoned == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize("spec", [SMALL, WAN_1_3B, WAN_14B], ids=["small", "1.3b", "14b"])
def test_weights_of_a_transformer(spec: ModelSpec) -> None:
    assert flops.transformer_weights(spec) == parameters(transformer(spec))


@pytest.mark.parametrize("name", VAES)
def test_a_vae(name: str) -> None:
    config, shape = VAES[name]
    with META:
        vae = AutoencoderKLWan(**config)
    assert shape.parameters == parameters(vae)
    rows, columns = 6, 8
    decoder, encoder = DecodeStream(vae), EncodeStream(vae)
    for first, frames in ((True, 1), (False, 3)):
        latents = torch.empty(1, shape.channels, frames, rows, columns, device=META)
        with FlopCounterMode(display=False) as counter:
            decoder.decode(latents)
        reckoned = shape.decode_flops(rows * columns, frames, first)
        assert reckoned == pytest.approx(counter.get_total_flops(), rel=1e-3)

        pixel_frames = 1 if first else 4 * frames
        size = (rows * shape.stride, columns * shape.stride)
        with FlopCounterMode(display=False) as counter:
            encoder.encode(torch.empty(1, 3, pixel_frames, *size, device=META))
        reckoned = shape.encode_flops(rows * columns, frames, first)
        assert reckoned == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_a_text_encoder() -> None:
    shape = TextShape(2, 64, 96, 4, 16, 300)
    config = UMT5Config(
        vocab_size=300,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    with META:
        encoder = UMT5EncoderModel(config)
        assert shape.parameters == parameters(encoder)
        with FlopCounterMode(display=False) as counter:
            encoder(torch.zeros(1, 20, dtype=torch.long))
    assert shape.flops(20) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_published_totals() -> None:
    """TFLOP of a forward, as derived by hand from the architecture."""
    for spec, tokens, total in (
        (WAN_1_3B, 32_760, 283.0),
        (WAN_1_3B, 75_600, 1249.8),
        (WAN_14B, 32_760, 1678.4),
        (WAN_14B, 75_600, 6523.4),
    ):
        reckoned = flops.forward_flops(spec, tokens) + flops.text_flops(spec, spec.layers)
        assert reckoned / 1e12 == pytest.approx(total, rel=1e-3)
