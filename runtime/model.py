"""A loaded model: transformer, VAE and text encoder with what the runtime must know of them."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import ftfy
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from longtake.runtime import weights
from longtake.runtime.model_folder import Layout, find_layout
from longtake.runtime.text_layouts import read_text_config
from longtake.runtime.vae_layouts import read_vae_config
from longtake.runtime.wan_transformer import WanTransformer
from longtake.runtime.weight_files import read_json
from longtake.runtime.weight_layouts import transformer_config, with_defaults
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.shapes import TextShape, VaeShape


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

    def layout(self) -> Layout:
        """Where the parts lie that `load_model` reads.

        Raises:
            UserError: the folder is not that of a Wan with one transformer.
        """
        return find_layout(self.folder, self.checkpoint)


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
    layout = config.layout()
    where = layout.config
    shape = with_defaults(WanTransformer3DModel, transformer_config(read_json(where), where))
    vae = read_vae_config(layout.vae)
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
        waves=shape["freq_dim"],
        text_tokens=config.text_tokens,
        text=_text_shape(layout.text_encoder),
        vae=VaeShape(
            width=vae["base_dim"],
            decoder_width=vae["decoder_base_dim"],
            multipliers=tuple(vae["dim_mult"]),
            blocks=vae["num_res_blocks"],
            channels=vae["z_dim"],
            doubles_time=tuple(reversed(vae["temperal_downsample"])),
            patch=vae["patch_size"] or 1,
            residual=vae["is_residual"],
        ),
    )


def _text_shape(source: Path) -> TextShape:
    config = UMT5Config.from_dict(read_text_config(source))
    return TextShape(
        layers=config.num_layers,
        width=config.d_model,
        ffn_dim=config.d_ff,
        heads=config.num_heads,
        head_dim=config.d_kv,
        vocabulary=config.vocab_size,
        buckets=config.relative_attention_num_buckets,
    )


def load_transformer(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, layers: range | None = None
) -> WanTransformer:
    """Load the transformer to `device`, or only a run of its layers.

    Raises:
        UserError: files are missing, damaged or of another family.
    """
    layout = config.layout()
    module = weights.load_transformer(
        layout.transformer, device=device, dtype=dtype, base=layout.config, layers=layers
    )
    return WanTransformer(module)


def load_decoder(config: ModelConfig, device: torch.device) -> AutoencoderKLWan:
    """Load the VAE alone; it stays in float32, as Wan's VAE wants it.

    Raises:
        UserError: files are missing, damaged or of another family.
    """
    return weights.load_vae(config.layout().vae, device=device, dtype=torch.float32)


def load_model(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, layers: range | None = None
) -> Model:
    """Load all parts to `device`, of the transformer at least `layers`, all if None.

    Raises:
        UserError: files are missing, damaged or of another family.
    """
    layout = config.layout()
    layout.preflight()
    spec = read_spec(config)
    tokenizer = weights.load_tokenizer(layout.tokenizer)
    transformer = load_transformer(config, device, dtype, layers)
    vae = load_decoder(config, device)
    text_encoder = weights.load_text_encoder(layout.text_encoder, device=device, dtype=dtype)
    return Model(config, spec, transformer, vae, tokenizer, text_encoder)
