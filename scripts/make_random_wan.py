"""Write a Wan of random weights in diffusers' layout: real shapes, for measuring; no real videos.

    python scripts/make_random_wan.py OUT [--size 1.3b|tiny] [--with-vae] [--shard-mb 1000]

OUT gets `transformer/` and, if asked for, `vae/` (always in the shape of Wan 2.1's), in bfloat16.
No more than one shard is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
from math import prod
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, ModelMixin, WanTransformer3DModel
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

SIZES = {
    "1.3b": {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
    "tiny": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "ffn_dim": 64,
        "freq_dim": 32,
        "text_dim": 24,
    },
}
STEM = "diffusion_pytorch_model"


def random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Values that keep activations near one: norms are one, biases zero, weights by fan-in."""
    made = torch.empty(shape, dtype=torch.bfloat16)
    if name.endswith(".bias"):
        return made.zero_()
    if "norm" in name:
        return made.fill_(1.0)
    return made.normal_(0.0, prod(shape[1:]) ** -0.5, generator=generator)


def write_component(module: ModelMixin, folder: Path, shard_mb: int, seed: int) -> None:
    """Write random weights for a module that was built on the meta device."""
    folder.mkdir(parents=True)
    module.save_config(folder)
    shapes = {name: like.to(torch.bfloat16) for name, like in module.state_dict().items()}
    plan = split_torch_state_dict_into_shards(
        shapes,
        filename_pattern=f"{STEM}{{suffix}}.safetensors",
        max_shard_size=shard_mb * 1_000_000,
    )
    generator = torch.Generator().manual_seed(seed)
    for file, names in plan.filename_to_tensors.items():
        tensors = {name: random_tensor(name, shapes[name].shape, generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        print(folder / file)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--size", choices=SIZES, default="1.3b", help="of the transformer")
    parser.add_argument("--with-vae", action="store_true", help="write a VAE too (254 MB)")
    parser.add_argument("--shard-mb", type=int, default=1000, help="most megabytes in one file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists; give a folder that does not")
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**SIZES[options.size])
        vae = AutoencoderKLWan()
    write_component(transformer, options.out / "transformer", options.shard_mb, options.seed)
    if options.with_vae:
        write_component(vae, options.out / "vae", options.shard_mb, options.seed + 1)


if __name__ == "__main__":
    main()
