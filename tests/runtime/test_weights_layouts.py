"""Names and configurations of the original layout, against diffusers' own converter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from longtake.runtime.weight_layouts import (
    inferred_config,
    original_name,
    plain_names,
    transformer_config,
)
from longtake.scheduler.errors import UserError

SOURCE = Path("checkpoint.pt")


def wan(**sizes: int) -> WanTransformer3DModel:
    with torch.device("meta"):
        return WanTransformer3DModel(**sizes)


def test_names_are_the_inverse_of_diffusers_converter() -> None:
    names = list(wan(num_layers=2, num_attention_heads=1).state_dict())
    originals = [original_name(name) for name in names]
    assert len(set(originals)) == len(names)
    converted = convert_wan_transformer_to_diffusers({name: name for name in originals})
    assert {name: converted[name] for name in names} == dict(zip(names, originals, strict=True))


def test_image_to_video_has_no_original_names() -> None:
    with pytest.raises(UserError, match="add_k_proj"):
        original_name("blocks.0.attn2.add_k_proj.weight")


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(("heads", "width"), [(12, 1536), (24, 3072), (40, 5120)])
def test_sizes_of_wan_are_inferred_from_shapes(heads: int, width: int, original: bool) -> None:
    model = wan(num_layers=3, num_attention_heads=heads, ffn_dim=4 * width, in_channels=48)
    shapes = {
        original_name(name) if original else name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    inferred = inferred_config(shapes, original, SOURCE)
    assert inferred.pop("patch_size") == [1, 2, 2]
    assert inferred.pop("cross_attn_norm") is True
    assert inferred == {key: model.config[key] for key in inferred}
    assert inferred["num_attention_heads"] * inferred["attention_head_dim"] == width
    assert [tuple(t.shape) for t in wan(**inferred).state_dict().values()] == list(shapes.values())


def test_the_published_original_config_of_wan_1_3b() -> None:
    raw = {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": 1536,
        "eps": 1e-06,
        "ffn_dim": 8960,
        "freq_dim": 256,
        "in_dim": 16,
        "model_type": "t2v",
        "num_heads": 12,
        "num_layers": 30,
        "out_dim": 16,
        "text_len": 512,
    }
    model = wan(**transformer_config(raw, SOURCE))
    assert sum(p.numel() for p in model.parameters()) == 1_418_996_800
    assert model.config.attention_head_dim == 128
    assert model.config.text_dim == 4096


def test_two_tensors_for_one_name() -> None:
    with pytest.raises(UserError, match="twice"):
        plain_names(["generator.model.head.head.bias", "generator.head.head.bias"])
