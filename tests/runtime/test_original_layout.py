"""A model in Wan's original layout makes the same bits as the same model in diffusers' layout."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from longtake.launch.api import generate, resume
from longtake.runtime.model import Model, ModelConfig, load_model, read_spec
from longtake.runtime.text_layouts import original_text_name
from longtake.runtime.weight_layouts import original_name
from longtake.runtime.weights import load_vae
from longtake.scheduler.errors import UserError

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "moves"]
PROMPT = "a red circle moves"
CPU = torch.device("cpu")
T5 = "models_t5_umt5-xxl-enc-bf16.pth"
VAE = "Wan2.1_VAE.pth"
CONFIG = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
    "model_type": "t2v",
    "text_len": 8,
    "dim": 32,
    "in_dim": 16,
    "out_dim": 16,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": 24,
    "num_heads": 2,
    "num_layers": 2,
    "eps": 1e-6,
}
RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


def original_vae_name(name: str) -> str:
    """The name in `Wan2.1_VAE.pth`, where all parts of encoder and decoder are numbered."""
    inner = rf"({'|'.join(RESIDUAL)})\."

    def up(match: re.Match[str]) -> str:
        level, kind, index = int(match[1]), match[2], int(match[3])
        return f"decoder.upsamples.{4 * level + (3 if kind == 'upsamplers' else index)}."

    name = re.sub(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.", up, name)
    name = name.replace("encoder.down_blocks.", "encoder.downsamples.")
    name = name.replace("mid_block.attentions.0", "middle.1")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"middle.{2 * int(match[1])}", name)
    name = re.sub(rf"(?<=\d\.){inner}", lambda match: f"{RESIDUAL[match[1]]}.", name)
    name = name.replace("coder.conv_in", "coder.conv1").replace("norm_out", "head.0")
    name = name.replace("conv_out", "head.2").replace("post_quant_conv", "conv2")
    return name.replace("quant_conv", "conv1")


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Wan 2.1 of random weights, thin."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("layouts") / "diffusers"
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    text = UMT5Config(vocab_size=len(WORDS), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    UMT5EncoderModel(text).save_pretrained(folder / "text_encoder")
    AutoencoderKLWan(base_dim=4, decoder_base_dim=8).save_pretrained(folder / "vae")
    WanTransformer3DModel(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        text_dim=24,
        freq_dim=32,
        ffn_dim=64,
    ).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def original(diffusers_folder: Path) -> Path:
    """The same under the original names, as `hf download Wan-AI/Wan2.1-T2V-1.3B` leaves it."""

    def renamed(part: str, name: Callable[[str], str]) -> dict[str, Tensor]:
        (file,) = (diffusers_folder / part).glob("*.safetensors")
        return {name(key): tensor for key, tensor in load_file(file).items()}

    folder = diffusers_folder.parent / "Wan2.1-T2V-tiny"
    shutil.copytree(diffusers_folder / "tokenizer", folder / "google" / "umt5-xxl")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    transformer = renamed("transformer", original_name)
    save_file(transformer, folder / "diffusion_pytorch_model.safetensors")
    torch.save(renamed("text_encoder", original_text_name), folder / T5)
    torch.save(renamed("vae", original_vae_name), folder / VAE)
    return folder


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """One that a test may break."""
    return shutil.copytree(original, tmp_path / "copy")


def config_of(folder: Path, checkpoint: Path | None = None) -> ModelConfig:
    return ModelConfig(
        name="tiny",
        folder=folder,
        checkpoint=checkpoint,
        fps=16,
        height=32,
        width=32,
        block_frames=3,
        text_tokens=8,
    )


def load(folder: Path, checkpoint: Path | None = None) -> Model:
    return load_model(config_of(folder, checkpoint), CPU, torch.float32)


def outputs(model: Model) -> dict[str, Tensor]:
    """What each part makes, from a prompt and seeded latents."""
    latents = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        text = model.encode_text(PROMPT)
        return {
            "text": text,
            "flow": model.transformer.module(latents, torch.tensor([500]), text).sample,
            "pixels": model.vae.decode(latents).sample,
        }


def assert_same(made: Model, expected: Model) -> None:
    assert made.spec == expected.spec
    assert made.vae.config.latents_mean == expected.vae.config.latents_mean
    wanted = outputs(expected)
    for part, values in outputs(made).items():
        assert values.std() > 0, part
        assert torch.equal(values, wanted[part]), part


def test_both_layouts_are_the_same_model(original: Path, diffusers_folder: Path) -> None:
    assert_same(load(original), load(diffusers_folder))


def test_a_checkpoint_on_an_original_folder(copy: Path, diffusers_folder: Path) -> None:
    weights = load_file(copy / "diffusion_pytorch_model.safetensors")
    checkpoint = copy.parent / "self_forcing_dmd.pt"
    torch.save({"generator_ema": {f"model.{n}": t for n, t in weights.items()}}, checkpoint)
    (copy / "diffusion_pytorch_model.safetensors").unlink()
    assert_same(load(copy, checkpoint), load(diffusers_folder))


def test_both_layouts_make_the_same_video(
    original: Path, diffusers_folder: Path, tmp_path: Path
) -> None:
    latents: list[dict[str, bytes]] = []
    request: dict[str, Any] = {"model": "wan2.1-t2v-1.3b", "size": "32x32", "seconds": 0.3}
    for folder in (original, diffusers_folder):
        out = tmp_path / f"{folder.name}.mp4"
        settings = [f"model.folder={folder}", "model.text_tokens=8"]
        run = generate(PROMPT, **request, steps=1, out=out, settings=settings)
        blocks = (run.run_dir / "blocks").glob("*.safetensors")
        latents.append({block.name: block.read_bytes() for block in blocks})
        assert resume(run.run_dir).finished
    assert latents[0] and latents[0] == latents[1]


def test_the_vae_has_its_published_names(original: Path) -> None:
    published = {
        "conv1.weight",
        "encoder.conv1.bias",
        "encoder.downsamples.5.time_conv.weight",
        "encoder.downsamples.3.shortcut.weight",
        "encoder.middle.2.residual.6.bias",
        "decoder.middle.1.to_qkv.weight",
        "decoder.upsamples.0.residual.0.gamma",
        "decoder.upsamples.11.resample.1.weight",
        "decoder.upsamples.14.residual.6.weight",
        "decoder.head.0.gamma",
        "decoder.head.2.weight",
    }
    assert published <= torch.load(original / VAE).keys()


def test_a_vae_with_a_part_missing(copy: Path) -> None:
    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            load_vae(copy / VAE, device=CPU, dtype=torch.float32)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    weights = torch.load(copy / VAE)
    del weights["decoder.upsamples.0.residual.0.gamma"]
    torch.save(weights, copy / VAE)
    assert "1 missing: decoder.up_blocks.0.resnets.0.norm1.gamma" in refusal()
    torch.save({"encoder.conv1.weight": torch.ones(4, 3, 3, 3, 3)}, copy / VAE)
    assert "not a whole Wan VAE" in refusal()


@pytest.mark.parametrize("name", [T5, VAE, "google/umt5-xxl/tokenizer.json"])
def test_a_missing_file_is_one_line(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError) as caught:
        load(copy)
    assert str(caught.value).startswith(f"{copy / name}: no such file")
    assert "\n" not in str(caught.value)


def test_an_original_wan_2_2_is_refused(copy: Path) -> None:
    config = {**CONFIG, "model_type": "ti2v", "in_dim": 48, "out_dim": 48}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="takes 48 channels, but its VAE makes 16"):
        read_spec(config_of(copy))
