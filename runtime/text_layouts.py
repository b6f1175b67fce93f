"""Wan's text encoder in the original layout: its names and sizes, told in transformers' words.

It is the encoder of umT5-xxl, published as one file with neither a configuration nor a decoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.runtime.weight_files import read_headers, read_json
from longtake.scheduler.errors import UserError

_TOP = {"shared": "token_embedding", "encoder.final_layer_norm": "norm"}
_BLOCK = {
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.q": "attn.q",
    "layer.0.SelfAttention.k": "attn.k",
    "layer.0.SelfAttention.v": "attn.v",
    "layer.0.SelfAttention.o": "attn.o",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}
_NAME = re.compile(r"(?:encoder\.block\.(?P<block>\d+)\.)?(?P<stem>.+)\.weight")


def original_text_name(name: str) -> str:
    """The original name of a parameter of transformers' `UMT5EncoderModel`."""
    match = _NAME.fullmatch(name)
    assert match is not None, name
    if match["block"] is None:
        return f"{_TOP[match['stem']]}.weight"
    return f"blocks.{match['block']}.{_BLOCK[match['stem']]}.weight"


def read_text_config(source: Path) -> dict[str, Any]:
    """transformers' configuration of the text encoder in `source`, a folder or the original file;
    no weight is read.

    Raises:
        UserError: it is missing, damaged or that of another encoder.
    """
    if source.is_file():
        shapes = {name: tensor.shape for name, tensor in read_headers(source).items()}
        return inferred_text_config(shapes, source)
    config = read_json(source / "config.json")
    if config.get("model_type") != "umt5":
        found = config.get("model_type", "of no known type")
        raise UserError(f"{source / 'config.json'}: is {found}; Wan's text encoder is umt5")
    return config


def inferred_text_config(shapes: Mapping[str, tuple[int, ...]], source: Path) -> dict[str, Any]:
    """transformers' configuration from the shapes of the tensors, by their original names.

    Raises:
        UserError: a tensor that tells a size is missing or has no such shape.
    """

    def matrix(name: str) -> tuple[int, int]:
        shape = shapes.get(name, ())
        if len(shape) != 2 or 0 in shape:
            found = list(shape) if name in shapes else "missing"
            raise UserError(
                f"{source}: not Wan's text encoder; {name} must be a matrix, is {found}"
            )
        return shape[0], shape[1]

    vocabulary, width = matrix("token_embedding.weight")
    buckets, heads = matrix("blocks.0.pos_embedding.embedding.weight")
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": matrix("blocks.0.attn.q.weight")[0] // heads,
        "d_ff": matrix("blocks.0.ffn.fc1.weight")[0],
        "num_layers": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
    }
