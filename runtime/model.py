"""A loaded model: transformer, VAE and text encoder with what the runtime must know of them."""

from __future__ import annotations

import html
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ftfy
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from longtake.runtime import weights
from longtake.runtime.wan_transformer import WanTransformer
from longtake.runtime.weight_files import read_json
from longtake.runtime.weight_layouts import transformer_config
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec


def clean_prompt(text: str) -> str:
    """Mend broken Unicode, HTML entities and white space, as Wan's own pipelines do."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


@dataclass(frozen=True)
class ModelConfig:
    """Where a model lies and what its files don't say.

    `folder` is a diffusers folder or an original Wan folder; `checkpoint` replaces the
    transformer's weights, as the Self Forcing family publishes them. `height` and `width` are the
    native size in pixels, `text_tokens` the length that prompts are padded to, `block_frames` in
    latent frames.
    """

    name: str
    folder: Path
    checkpoint: Path | None
    fps: int
    height: int
    width: int
    block_frames: int
    text_tokens: int


@dataclass(frozen=True)
class Model:
    """Everything that a run needs, on one device."""

    config: ModelConfig
    spec: ModelSpec
    transformer: WanTransformer
    vae: AutoencoderKLWan
    tokenizer: PreTrainedTokenizerBase
    text_encoder: UMT5EncoderModel

    @torch.inference_mode()
    def encode_text(self, text: str) -> Tensor:
        """Embed a prompt: (1, text_tokens, width), zeros after its last token."""
        tokens = self.tokenizer(
            [clean_prompt(text)],
            padding="max_length",
            max_length=self.config.text_tokens,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(self.text_encoder.device)
        ids = tokens.input_ids.to(self.text_encoder.device)
        embeddings: Tensor = self.text_encoder(ids, mask).last_hidden_state
        return embeddings * mask.unsqueeze(-1).to(embeddings.dtype)


def read_spec(config: ModelConfig) -> ModelSpec:
    """What the files tell of a model before any weight is read.

    Raises:
        UserError: a configuration is missing, damaged, or that of another family.
    """
    folder = config.folder
    if not (folder / "transformer").is_dir():
        raise UserError(f"{folder}: has no transformer folder; is it a Wan in diffusers' layout?")
    index = folder / "model_index.json"
    if index.is_file() and (read_json(index).get("transformer_2") or [None])[0] is not None:
        raise UserError(f"{folder}: has two transformers, as Wan 2.2 has; only one is supported")
    where = folder / "transformer" / "config.json"
    shape = {**_defaults(WanTransformer3DModel), **transformer_config(read_json(where), where)}
    vae = read_vae_config(folder)
    if shape["in_channels"] != vae["z_dim"]:
        raise UserError(
            f"{where}: takes {shape['in_channels']} channels, but its VAE makes {vae['z_dim']}; "
            "only text-to-video models are supported"
        )
    return ModelSpec(
        layers=shape["num_layers"],
        heads=shape["num_attention_heads"],
        head_dim=shape["attention_head_dim"],
        ffn_dim=shape["ffn_dim"],
        latent_channels=shape["in_channels"],
        patch=int(shape["patch_size"][1]),
        rotary_rows=shape["rope_max_seq_len"],
        block_frames=config.block_frames,
        spatial_stride=vae["scale_factor_spatial"],
        temporal_stride=vae["scale_factor_temporal"],
    )


def read_vae_config(folder: Path) -> dict[str, Any]:
    """The configuration of a pipeline's VAE, with diffusers' defaults.

    Raises:
        UserError: it is missing, damaged or that of another VAE.
    """
    where = folder / "vae" / "config.json"
    raw = read_json(where)
    if raw.get("_class_name") != "AutoencoderKLWan":
        found = raw.get("_class_name", "of no known class")
        raise UserError(f"{where}: is {found}; legal is AutoencoderKLWan")
    return {**_defaults(AutoencoderKLWan), **raw}


def _defaults(model: type) -> dict[str, Any]:
    parameters = inspect.signature(model).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def weight_sources(config: ModelConfig) -> dict[str, Path]:
    """The files and folders that `load_model` reads weights from, by part."""
    folder = config.folder
    return {
        "transformer": config.checkpoint or folder / "transformer",
        "vae": folder / "vae",
        "text_encoder": folder / "text_encoder",
    }


def load_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Model:
    """Load all parts to `device`; the VAE stays in float32, as Wan's VAE wants it.

    Raises:
        UserError: files are missing, damaged or of another family.
    """
    source = config.checkpoint or config.folder
    weights.preflight(config.folder)
    if config.checkpoint is not None:
        weights.preflight(config.checkpoint)
    transformer = weights.load_transformer(
        source, device=device, dtype=dtype, base=config.folder if config.checkpoint else None
    )
    vae = weights.load_vae(config.folder, device=device, dtype=torch.float32)
    tokenizer, text_encoder = weights.load_text_encoder(config.folder, device=device, dtype=dtype)
    spec = read_spec(config)
    return Model(config, spec, WanTransformer(transformer), vae, tokenizer, text_encoder)
