"""VAE and text encoder of a diffusers pipeline, loaded as strictly as the transformer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from longtake.runtime.weights import load_text_encoder, load_tokenizer, load_vae
from longtake.scheduler.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    """Wan's VAE, but thin."""
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=4, decoder_base_dim=8).eval()


def assert_same(loaded: AutoencoderKLWan, expected: AutoencoderKLWan) -> None:
    wanted = expected.state_dict()
    assert loaded.state_dict().keys() == wanted.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert loaded.config.latents_mean == expected.config.latents_mean
    assert not loaded.training
    latents = torch.randn(1, 16, 2, 2, 2)
    with torch.no_grad():
        assert torch.equal(loaded.decode(latents).sample, expected.decode(latents).sample)


def test_diffusers_vae(vae: AutoencoderKLWan, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae")
    assert_same(load_vae(tmp_path / "vae", device=CPU, dtype=torch.float32), vae)
    half = load_vae(tmp_path / "vae", device=CPU, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in half.parameters())


def vae_refusal(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_vae(source, device=CPU, dtype=torch.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_vae_of_another_family(vae: AutoencoderKLWan, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"teeth": 3}))
    assert "teeth" in vae_refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert "is AutoencoderKL;" in vae_refusal(tmp_path)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline of which only the text side is there."""
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=9, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    UMT5EncoderModel(config).save_pretrained(tmp_path / "text_encoder")
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -1.0), ("cat", -2.0), ("dog", -2.0)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(Unigram(words, unk_id=2)), pad_token="<pad>", eos_token="</s>"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_text_encoder_equals_that_of_transformers(dtype: torch.dtype, pipeline: Path) -> None:
    tokenizer = load_tokenizer(pipeline / "tokenizer")
    encoder = load_text_encoder(pipeline / "text_encoder", device=CPU, dtype=dtype)
    expected = UMT5EncoderModel.from_pretrained(pipeline / "text_encoder", dtype=dtype).eval()
    weights = [dict(m.named_parameters(remove_duplicate=False)) for m in (encoder, expected)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert weight.dtype == weights[1][name].dtype, name
        assert torch.equal(weight, weights[1][name]), name
    assert encoder.encoder.embed_tokens.weight is encoder.shared.weight
    assert not encoder.training
    tokens = tokenizer("dogcat", return_tensors="pt").input_ids
    assert tokens.tolist()[0][:2] == [4, 3]
    with torch.no_grad():
        outputs = [model(tokens).last_hidden_state for model in (encoder, expected)]
    assert torch.equal(*outputs)


def test_the_shared_embedding_under_its_other_name(pipeline: Path) -> None:
    file = pipeline / "text_encoder" / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    embedding = weights.pop("shared.weight")
    save_file(weights | {"encoder.embed_tokens.weight": embedding}, file)
    encoder = load_text_encoder(pipeline / "text_encoder", device=CPU, dtype=torch.float32)
    assert torch.equal(encoder.shared.weight, embedding)


def text_refusal(pipeline: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_text_encoder(pipeline / "text_encoder", device=CPU, dtype=torch.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_text_encoder_with_weights_missing(pipeline: Path) -> None:
    file = pipeline / "text_encoder" / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    del weights["shared.weight"], weights["encoder.final_layer_norm.weight"]
    save_file(weights | {"lm_head.weight": torch.ones(9, 16)}, file)
    told = text_refusal(pipeline)
    assert "2 missing: encoder.final_layer_norm.weight, shared.weight" in told
    assert "1 unexpected: lm_head.weight" in told


def test_text_encoder_of_another_family(pipeline: Path) -> None:
    file = pipeline / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "t5"}))
    assert "is t5;" in text_refusal(pipeline)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "tokenizer.json: cannot be read (No such file or directory)"),
        ('{"model": {"vocab": [["a"', "tokenizer.json: not valid JSON"),
        ("{}", "tokenizer: not a readable tokenizer"),
    ],
)
def test_tokenizers_that_cannot_be_read(content: str | None, told: str, pipeline: Path) -> None:
    file = pipeline / "tokenizer" / "tokenizer.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(pipeline / "tokenizer")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
