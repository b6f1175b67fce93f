"""Load Wan's weights: the transformer, the VAE and the text encoder.

A module is built without memory, compared with what the headers of its files promise, and only then
filled, tensor by tensor, straight in its final dtype and on its final device. Whatever is missing,
left over or of a wrong shape is an error that names it: nothing is loaded half.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from longtake.runtime.text_layouts import original_text_name, read_text_config
from longtake.runtime.vae_layouts import read_vae_config, vae_names
from longtake.runtime.weight_files import StoredTensor, read_headers, read_json, read_tensors
from longtake.runtime.weight_layouts import (
    config_file,
    inferred_config,
    is_original,
    original_name,
    plain_names,
    some_of,
    transformer_config,
)
from longtake.scheduler.errors import UserError

Model = TypeVar("Model", bound=nn.Module)


def load_transformer(
    source: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    base: Path | None = None,
    layers: range | None = None,
) -> WanTransformer3DModel:
    """Load a Wan transformer, in evaluation mode and without gradients.

    Args:
        source: the `transformer` folder of a diffusers pipeline, a folder of the original layout,
            or one file (.safetensors, .pt, .pth) with a state dict in diffusers' or the original
            names, flat or under `generator_ema`, `generator`, `model` or `state_dict`.
        device: where the weights go.
        dtype: of the weights, except those that diffusers keeps in float32 (norms, modulation
            tables, the time embedder).
        base: the `config.json` of either layout that tells the architecture, or its folder;
            without it, the `config.json` beside the weights does, or else their shapes.
        layers: those to load, None for all; in place of the others stands `nn.Identity`.

    Raises:
        UserError: files are missing, unfinished, truncated or corrupt; the weights are another
            model's; tensors are missing, left over or of a wrong shape; or the number of heads
            cannot be told without a base.
    """
    where = config_file(base or source)
    config = None
    if where.is_file():
        config = transformer_config(read_json(where), where)
    elif base is not None:
        raise UserError(f"{base}: has no config.json that tells the architecture")
    stored = read_headers(source)
    plain = {name: stored[key] for name, key in plain_names(stored).items()}
    original = is_original(plain, source)
    if config is None:
        shapes = {name: tensor.shape for name, tensor in plain.items()}
        config = inferred_config(shapes, original, source)

    module = _empty(lambda: WanTransformer3DModel.from_config(config), source)
    if not original:
        ignored = WanTransformer3DModel._keys_to_ignore_on_load_unexpected
        plain = {n: t for n, t in plain.items() if not any(part in n for part in ignored)}
    names = {original_name(name) if original else name: name for name in module.state_dict()}
    _check(module, plain, names, source)
    _drop_layers(module, layers)
    owned = module.state_dict().keys()
    filling = {names[name]: tensor for name, tensor in plain.items() if names[name] in owned}
    _fill(module, filling, device, dtype, WanTransformer3DModel._keep_in_fp32_modules)
    # These tables are computed, not stored, and were lost when the module was built empty.
    made = module.config
    module.rope = WanRotaryPosEmbed(
        made.attention_head_dim, made.patch_size, made.rope_max_seq_len
    ).to(device)
    return _ready(module)


def _drop_layers(module: WanTransformer3DModel, kept: range | None) -> None:
    for index in range(len(module.blocks)):
        if kept is not None and index not in kept:
            module.blocks[index] = nn.Identity()


def load_vae(source: Path, *, device: torch.device, dtype: torch.dtype) -> AutoencoderKLWan:
    """Load Wan's VAE, in evaluation mode and without gradients.

    Args:
        source: the `vae` folder of a diffusers pipeline, or one file such as the original
            `Wan2.1_VAE.pth`, whose widths are told by its shapes.
        device: where the weights go.
        dtype: of all weights.

    Raises:
        UserError: as for the transformer.
    """
    stored = read_headers(source)
    names = vae_names(stored)
    config = read_vae_config(source)
    module = _empty(lambda: AutoencoderKLWan.from_config(config), source)
    tensors = {names[key]: tensor for key, tensor in stored.items()}
    _check(module, tensors, {name: name for name in module.state_dict()}, source)
    _fill(module, tensors, device, dtype, keep_float32=())
    return _ready(module)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of Wan's text encoder.

    Raises:
        UserError: files are missing or damaged.
    """
    read_json(folder / "tokenizer.json")  # without it, transformers makes do with no vocabulary
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: not a readable tokenizer ({reason})") from error


def load_text_encoder(
    source: Path, *, device: torch.device, dtype: torch.dtype
) -> UMT5EncoderModel:
    """Load Wan's text encoder, in evaluation mode and without gradients.

    Args:
        source: the `text_encoder` folder of a diffusers pipeline, or the original's one file, whose
            sizes are told by its shapes.
        device: where the weights go.
        dtype: of the weights; in float16 the feed-forward outputs stay in float32, as
            transformers keeps them.

    Raises:
        UserError: as for the transformer.
    """
    stored = read_headers(source)
    original = source.is_file()
    config = read_text_config(source)
    module = _empty(lambda: UMT5EncoderModel(UMT5Config.from_dict(config)), source)
    tied: Mapping[str, str] = module._tied_weights_keys  # a second name of a weight, to its first
    for second, first in tied.items():
        if second in stored:
            stored.setdefault(first, stored.pop(second))
    wanted = module.state_dict().keys() - tied.keys()
    names = {original_text_name(name) if original else name: name for name in wanted}
    _check(module, stored, names, source)
    keep = module._keep_in_fp32_modules if dtype == torch.float16 else ()
    tensors = {names[key]: tensor for key, tensor in stored.items()}
    _fill(module, tensors, device, dtype, keep_float32=keep, tied=tied)
    module.tie_weights()
    return _ready(module)


def _empty(build: Callable[[], Model], source: Path) -> Model:
    """Build a module whose tensors have shapes but no memory."""
    try:
        with torch.device("meta"):
            return build()
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: its configuration makes no model ({reason})") from error


def _check(
    module: nn.Module, stored: Mapping[str, StoredTensor], names: Mapping[str, str], source: Path
) -> None:
    """Compare headers with the module. `names`: name in the files to name in the module."""
    wanted = module.state_dict()
    wrong = [
        f"{name} is {list(tensor.shape)}, not {list(wanted[names[name]].shape)}"
        for name, tensor in stored.items()
        if name in names and tensor.shape != tuple(wanted[names[name]].shape)
    ]
    integers = [name for name, tensor in stored.items() if name in names and not tensor.floating]
    faults = {
        "missing": names.keys() - stored.keys(),
        "unexpected": stored.keys() - names.keys(),
        "of a wrong shape": wrong,
        "integers, as quantised weights are": integers,
    }
    told = [f"{len(found)} {kind}: {some_of(found)}" for kind, found in faults.items() if found]
    if told:
        raise UserError(f"{source}: the tensors do not fit the model; {'; '.join(told)}")


def _fill(
    module: nn.Module,
    stored: Mapping[str, StoredTensor],
    device: torch.device,
    dtype: torch.dtype,
    keep_float32: Collection[str],
    tied: Mapping[str, str] | None = None,
) -> None:
    """Read every tensor into the module. `stored`: by the module's names, complete."""
    names = {tensor: name for name, tensor in stored.items()}
    weights: dict[str, Tensor] = {}
    for tensor, values in read_tensors(names):
        name = names[tensor]
        kept = any(part in keep_float32 for part in name.split("."))
        target = torch.float32 if kept else dtype
        # A copy even where nothing changes: in a mapped file weights lie at odd addresses, and for
        # those the CPU's kernels round differently, so results would depend on the file's layout.
        weights[name] = values.to(
            device=device, dtype=target, copy=True, memory_format=torch.contiguous_format
        )
    for second, first in (tied or {}).items():
        weights[second] = weights[first]
    module.load_state_dict(weights, strict=True, assign=True)


def _ready(module: Model) -> Model:
    tensors = chain(module.named_parameters(), module.named_buffers())
    lost = [name for name, tensor in tensors if tensor.is_meta]
    if lost:
        raise RuntimeError(f"{type(module).__name__} was left without {some_of(lost)}")
    return module.requires_grad_(False).eval()
