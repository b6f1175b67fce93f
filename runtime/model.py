"""A loaded model: transformer, VAE and text encoder with what the runtime must know of them."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import ftfy
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from longtake.runtime import weights
from longtake.runtime.wan_transformer import WanTransformer
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
    shape = transformer.config
    spec = ModelSpec(
        layers=shape.num_layers,
        heads=shape.num_attention_heads,
        head_dim=shape.attention_head_dim,
        ffn_dim=shape.ffn_dim,
        latent_channels=shape.in_channels,
        patch=int(shape.patch_size[1]),
        rotary_rows=shape.rope_max_seq_len,
        block_frames=config.block_frames,
        fps=config.fps,
        spatial_stride=vae.config.scale_factor_spatial,
        temporal_stride=vae.config.scale_factor_temporal,
    )
    return Model(config, spec, WanTransformer(transformer), vae, tokenizer, text_encoder)
