"""Shapes of published models, for figures about them and for plans before any weight is here."""

from __future__ import annotations

import re
from dataclasses import replace

from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.shapes import TextShape, VaeShape

ENDLESS = 2**30  # rotary rows: what a model was trained for is no matter of cost

WAN_1_3B = ModelSpec(30, 12, 128, 8960, 16, 2, ENDLESS, 3)
WAN_14B = ModelSpec(40, 40, 128, 13824, 16, 2, ENDLESS, 3)
WAN_2_2_5B = replace(
    ModelSpec(30, 24, 128, 14336, 48, 2, ENDLESS, 8),
    spatial_stride=16,
    vae=VaeShape(160, 256, channels=48, patch=2, residual=True),
)
# Text and video in one stream, in two kinds of layers that cost the same. The VAE decodes
# tiles that overlap, (256/192)^2 in space and 16/12 in time; its FLOPs are diffusers'.
HUNYUAN_13B = replace(
    ModelSpec(60, 24, 128, 12288, 16, 2, ENDLESS, 3),
    joint_text=True,
    text_tokens=256,
    text=TextShape(32, 4096, 14336, 32, 128, 128320),
    vae=VaeShape(128, flops_per_pixel=17.54e6 * (256 / 192) ** 2 * 16 / 12),
)
COGVIDEOX_5B = replace(
    ModelSpec(42, 48, 64, 12288, 16, 2, ENDLESS, 3),
    joint_text=True,
    text_tokens=226,
    vae=VaeShape(128, flops_per_pixel=18.9e6),
)
COGVIDEOX_2B = replace(COGVIDEOX_5B, layers=30, heads=30, ffn_dim=7680)
MAGI_24B = replace(
    ModelSpec(48, 48, 128, 16384, 16, 2, ENDLESS, 6), key_heads=8, gated=True, text_tokens=800
)
# The model that ships with Longtake.
TINYWORLD = replace(
    ModelSpec(6, 5, 32, 480, 8, 2, 1024, 3),
    waves=64,
    text_tokens=24,
    text=TextShape(2, 64, 128, 4, 16, 37),
    vae=VaeShape(16, 16, (1, 2, 2), 1, 8, (True, True), patch=2, residual=True),
)

_KNOWN = (
    (r"^tinyworld$", TINYWORLD),
    (r"wan2\.2.*5b|ti2v-?5b", WAN_2_2_5B),
    (r"hunyuanvideo(?!-?1\.5).*", HUNYUAN_13B),
    (r"cogvideox-?2b", COGVIDEOX_2B),
    (r"cogvideox-?5b|consisid", COGVIDEOX_5B),
    (r"magi.*24b", MAGI_24B),
    (r"(wan.*|^)1\.3b", WAN_1_3B),
    (r"(wan.*|krea.*|^)a?14b", WAN_14B),
)


def known_model(name: str) -> ModelSpec | None:
    """The shape that a name such as `wan2.1-14b` stands for."""
    for pattern, spec in _KNOWN:
        if re.search(pattern, name.lower()):
            return spec
    return None
