"""Wan's text encoder under its original names: the same sums, and as strict as the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import UMT5Config, UMT5EncoderModel

from longtake.runtime.text_layouts import inferred_text_config, original_text_name
from longtake.runtime.weights import load_text_encoder
from longtake.scheduler.errors import UserError

CPU = torch.device("cpu")
HEADS = 2
SIZES = {"vocab_size": 9, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": HEADS}
XXL = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64}


def original_names(encoder: UMT5EncoderModel) -> dict[str, Tensor]:
    weights = encoder.state_dict()
    del weights["encoder.embed_tokens.weight"]  # the shared embedding's second name
    return {original_text_name(name): tensor for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def encoder() -> UMT5EncoderModel:
    """A tiny encoder with norms and biases that are not those of a fresh one."""
    torch.manual_seed(0)
    encoder = UMT5EncoderModel(UMT5Config(**SIZES)).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.dim() == 1 else 0.0, 0.3)
    return encoder


@pytest.fixture
def weights(encoder: UMT5EncoderModel) -> dict[str, Tensor]:
    return original_names(encoder)


def write(weights: dict[str, Tensor], folder: Path) -> Path:
    file = folder / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save(weights, file)
    return file


def test_the_published_encoder_has_these_names_and_sizes() -> None:
    with torch.device("meta"):
        xxl = UMT5EncoderModel(UMT5Config(**XXL, num_layers=24))
    shapes = {name: tuple(tensor.shape) for name, tensor in original_names(xxl).items()}
    inferred = inferred_text_config(shapes, Path("t5.pth"))
    assert len(shapes) == 242
    published = {
        "token_embedding.weight": (256384, 4096),
        "blocks.0.norm1.weight": (4096,),
        "blocks.23.attn.q.weight": (4096, 4096),
        "blocks.23.attn.o.weight": (4096, 4096),
        "blocks.23.norm2.weight": (4096,),
        "blocks.23.ffn.gate.0.weight": (10240, 4096),
        "blocks.23.ffn.fc1.weight": (10240, 4096),
        "blocks.23.ffn.fc2.weight": (4096, 10240),
        "blocks.23.pos_embedding.embedding.weight": (32, 64),
        "norm.weight": (4096,),
    }
    assert shapes.items() >= published.items()
    assert (
        inferred.items() >= {**XXL, "num_layers": 24, "relative_attention_num_buckets": 32}.items()
    )


def published_sums(weights: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """Wan's text encoder by its definition, for up to eight tokens: nearer buckets are exact."""

    def norm(x: Tensor, name: str) -> Tensor:
        return weights[f"{name}.weight"] * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T

    place = torch.arange(ids.shape[1])
    ahead = place[None, :] - place[:, None]
    buckets = ahead.abs() + 16 * (ahead > 0)
    x = weights["token_embedding.weight"][ids]
    for block in ("blocks.0", "blocks.1"):
        y = norm(x, f"{block}.norm1")
        q, k, v = (linear(y, f"{block}.attn.{n}").unflatten(-1, (HEADS, -1)) for n in "qkv")
        bias = weights[f"{block}.pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        scores = torch.einsum("bqhc,bkhc->bhqk", q, k) + bias
        chances = scores.masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(-1)
        seen = torch.einsum("bhqk,bkhc->bqhc", chances, v).flatten(2)
        x = x + linear(seen, f"{block}.attn.o")
        y = norm(x, f"{block}.norm2")
        gate = functional.gelu(linear(y, f"{block}.ffn.gate.0"), approximate="tanh")
        x = x + linear(linear(y, f"{block}.ffn.fc1") * gate, f"{block}.ffn.fc2")
    return norm(x, "norm")


def test_the_original_file_computes_what_it_defines(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    loaded = load_text_encoder(write(weights, tmp_path), device=CPU, dtype=torch.float32)
    ids = torch.randint(3, 9, (2, 8), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(8) < torch.tensor([[8], [5]])).long()
    with torch.no_grad():
        made = loaded(ids, mask).last_hidden_state
    expected = published_sums(weights, ids, mask)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_original_file_equals_the_folder(
    dtype: torch.dtype, encoder: UMT5EncoderModel, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    encoder.save_pretrained(tmp_path / "text_encoder")
    sources = [tmp_path / "text_encoder", write(weights, tmp_path)]
    loaded = [load_text_encoder(source, device=CPU, dtype=dtype) for source in sources]
    first, second = (dict(model.named_parameters(remove_duplicate=False)) for model in loaded)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert weight.dtype == second[name].dtype, name
        assert torch.equal(weight, second[name]), name
    for model in loaded:
        assert model.encoder.embed_tokens.weight is model.shared.weight
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())


def refusal(weights: dict[str, Tensor], folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_text_encoder(write(weights, folder), device=CPU, dtype=torch.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_misfits_are_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    del weights["blocks.1.attn.k.weight"]
    weights["blocks.0.ffn.fc2.weight"] = torch.ones(16, 23)
    weights["head.weight"] = torch.ones(9, 16)
    told = refusal(weights, tmp_path)
    assert "1 missing: blocks.1.attn.k.weight" in told
    assert "1 unexpected: head.weight" in told
    assert "blocks.0.ffn.fc2.weight is [16, 23], not [16, 24]" in told


def test_files_of_something_else(weights: dict[str, Tensor], tmp_path: Path) -> None:
    told = refusal({"encoder.conv1.weight": torch.ones(4, 3, 3, 3, 3)}, tmp_path)
    assert "not Wan's text encoder; token_embedding.weight must be a matrix, is missing" in told
    weights["blocks.0.pos_embedding.embedding.weight"] = torch.ones(32, 0)
    assert "must be a matrix, is [32, 0]" in refusal(weights, tmp_path)
