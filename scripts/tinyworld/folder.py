"""tinyworld as a standard diffusers folder: what its parts look like before they are trained."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from longtake.runtime import world

TEXT_TOKENS = 24
TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "in_channels": 8,
    "out_channels": 8,
    "text_dim": 64,
    "freq_dim": 64,
    "ffn_dim": 480,
    "num_layers": 6,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the grammar, everything else unknown."""
    words = {"a", "an", "on", "background", *world.SHAPES, *world.COLORS, *world.BACKGROUNDS}
    words |= {*world.RADII, *world.SPEEDS, *(w for m in world.MOTIONS for w in m.split())}
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {word: 3 + index for index, word in enumerate(sorted(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """A two-layer UMT5 encoder."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=TRANSFORMER["text_dim"],
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def make_transformer() -> WanTransformer3DModel:
    """The untrained transformer; its head starts at zero, as diffusion transformers usually do."""
    transformer = WanTransformer3DModel(**TRANSFORMER)
    transformer.proj_out.weight.data.zero_()
    transformer.proj_out.bias.data.zero_()
    return transformer


def save(
    folder: Path,
    transformer: WanTransformer3DModel,
    vae: AutoencoderKLWan,
    tokenizer: PreTrainedTokenizerFast,
    text_encoder: UMT5EncoderModel,
) -> None:
    """Write the pipeline folder; the transformer in float16, which halves what git must keep."""
    WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer.half(),
    ).save_pretrained(folder)
