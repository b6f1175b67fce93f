"""What files tell of a model's shape is what its modules turn out to be."""

from __future__ import annotations

import torch

from longtake.launch.config import compose_settings
from longtake.launch.draft import model_config
from longtake.runtime.model import load_model, read_spec
from longtake.scheduler import flops
from longtake.scheduler.known_models import TINYWORLD


def test_the_small_model_has_as_many_weights_as_its_shape_says() -> None:
    config = model_config(compose_settings({"model": "tinyworld"}).model)
    spec = read_spec(config)
    model = load_model(config, torch.device("cpu"), torch.float32)
    for module, reckoned in (
        (model.transformer.module, flops.transformer_weights(spec)),
        (model.vae, spec.vae.parameters),
        (model.text_encoder, spec.text.parameters),
    ):
        assert reckoned == sum(parameter.numel() for parameter in module.parameters())
    assert spec.text_tokens == config.text_tokens
    assert spec.vae.stride == spec.spatial_stride


def test_the_small_model_is_known_without_its_files() -> None:
    model = compose_settings({"model": "tinyworld"}).model
    assert read_spec(model_config(model)) == TINYWORLD
