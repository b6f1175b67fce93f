"""Small VAEs of both kinds, with random weights; test modules share them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan

RESIDUAL: dict[str, Any] = {  # the kind of Wan2.2-TI2V-5B, and of tinyworld
    "base_dim": 8,
    "decoder_base_dim": 12,
    "z_dim": 8,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
}
PLAIN: dict[str, Any] = {  # the kind of Wan2.1
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}


def make_vae(config: dict[str, Any]) -> AutoencoderKLWan:
    """Always the same weights, and statistics that are not 0 and 1."""
    torch.manual_seed(0)
    statistics = {
        "latents_mean": torch.linspace(-0.5, 0.7, config["z_dim"]).tolist(),
        "latents_std": torch.linspace(0.5, 3.0, config["z_dim"]).tolist(),
    }
    return AutoencoderKLWan(**config, **statistics).eval()
