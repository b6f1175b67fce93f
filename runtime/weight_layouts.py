"""The layouts in which Wan transformers are published, each told in diffusers' words.

The original layout has its own names and its own `config.json`. Checkpoints of the Self Forcing
family have the original names inside wrappers, and mostly no configuration at all.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from diffusers import WanTransformer3DModel

from longtake.scheduler.errors import UserError

# Where a checkpoint may keep the transformer, the best first.
_GROUPS = ("generator_ema", "generator", "model", "state_dict")
# What frameworks put into names when they wrap a module.
_WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")

_ORIGINAL_TOP = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
_ORIGINAL_BLOCK = {
    "scale_shift_table": "modulation",
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "norm2": "norm3",  # the two number the norms differently
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_NAME = re.compile(r"(?P<block>blocks\.\d+\.)?(?P<stem>.+?)(?P<kind>\.weight|\.bias)?")

# The original constructor's arguments: diffusers' name, and the default.
_ORIGINAL_CONFIG: dict[str, tuple[str, Any]] = {
    "patch_size": ("patch_size", [1, 2, 2]),
    "in_dim": ("in_channels", 16),
    "out_dim": ("out_channels", 16),
    "ffn_dim": ("ffn_dim", 8192),
    "freq_dim": ("freq_dim", 256),
    "text_dim": ("text_dim", 4096),
    "num_heads": ("num_attention_heads", 16),
    "num_layers": ("num_layers", 32),
    "cross_attn_norm": ("cross_attn_norm", True),
    "eps": ("eps", 1e-6),
}
_ORIGINAL_DIM = 2048
_ORIGINAL_CLASSES = ("WanModel", "CausalWanModel")
# Arguments of the original classes that say how the model is run, not what it is made of.
_ORIGINAL_RUN = {"text_len", "local_attn_size", "sink_size"}
_ORIGINAL_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("t2v", "ti2v"),
    "qk_norm": (True,),
    "window_size": ([-1, -1],),
}
_WIDTHS_OF_WAN = (1536, 3072, 5120)  # with heads of 128
_HEAD_DIM_OF_WAN = 128


def plain_names(keys: Iterable[str]) -> dict[str, str]:
    """The transformer's tensors in a checkpoint: name without group and wrappers, to key.

    Raises:
        UserError: two keys have the same plain name.
    """
    unwrapped = {_WRAPPERS.sub("", key): key for key in sorted(keys)}
    group = next((g for g in _GROUPS if any(n.startswith(f"{g}.") for n in unwrapped)), None)
    if group is not None:
        start = f"{group}."
        unwrapped = {n.removeprefix(start): k for n, k in unwrapped.items() if n.startswith(start)}
    plain: dict[str, str] = {}
    for name, key in unwrapped.items():
        bare = name.removeprefix("model.")
        if bare in plain:
            raise UserError(f"the checkpoint holds {bare} twice, as {plain[bare]} and as {key}")
        plain[bare] = key
    return plain


def is_original(names: Iterable[str], source: Path) -> bool:
    """Whether the names are those of the original layout, and not those of diffusers.

    Raises:
        UserError: they are neither.
    """
    names = set(names)
    if "head.head.weight" in names or "time_embedding.0.weight" in names:
        return True
    if "proj_out.weight" in names or any(n.startswith("condition_embedder.") for n in names):
        return False
    raise UserError(f"{source}: not a Wan transformer; its tensors are {some_of(names)}")


def original_name(name: str) -> str:
    """The original name of one of diffusers' parameters.

    Raises:
        UserError: the original layout of text-to-video models has no such parameter.
    """
    match = _NAME.fullmatch(name)
    table = _ORIGINAL_BLOCK if match and match["block"] else _ORIGINAL_TOP
    if match is None or match["stem"] not in table:
        raise UserError(
            f"{name} has no original name; in the original layout only text-to-video "
            "transformers are read"
        )
    return f"{match['block'] or ''}{table[match['stem']]}{match['kind'] or ''}"


def transformer_config(raw: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """diffusers' configuration from a diffusers or an original `config.json`.

    Raises:
        UserError: it is another model's, or has keys that are not known.
    """
    name = raw.get("_class_name")
    config = {key: value for key, value in raw.items() if not key.startswith("_")}
    if name in _ORIGINAL_CLASSES or (name is None and {"dim", "num_heads"} <= config.keys()):
        return _from_original(config, where)
    if name == "WanTransformer3DModel" or (name is None and "num_attention_heads" in config):
        return known_config(WanTransformer3DModel, config, where)
    what = f"a {name}" if name else f"of no known model (its keys: {some_of(config)})"
    raise UserError(
        f"{where}: is {what}; legal are WanTransformer3DModel, {' and '.join(_ORIGINAL_CLASSES)}"
    )


def config_file(source: Path) -> Path:
    """The `config.json` that belongs to weights: in their folder, or beside their file."""
    if source.is_dir():
        return source / "config.json"
    return source if source.suffix == ".json" else source.with_name("config.json")


def with_defaults(model: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Add what the model's constructor takes where the configuration says nothing."""
    parameters = inspect.signature(model).parameters
    return {name: parameter.default for name, parameter in parameters.items()} | dict(config)


def known_config(model: type, config: dict[str, Any], where: Path) -> dict[str, Any]:
    """Refuse keys that the model's constructor would ignore."""
    unknown = config.keys() - inspect.signature(model.__init__).parameters.keys()  # type: ignore[misc]
    if unknown:
        raise UserError(f"{where}: {model.__name__} does not know {some_of(unknown)}")
    return config


def _from_original(raw: Mapping[str, Any], where: Path) -> dict[str, Any]:
    known = {"dim", *_ORIGINAL_CONFIG, *_ORIGINAL_RUN, *_ORIGINAL_FIXED}
    if raw.keys() - known:
        raise UserError(f"{where}: the original Wan does not know {some_of(raw.keys() - known)}")
    for key, legal in _ORIGINAL_FIXED.items():
        if key in raw and raw[key] not in legal:
            choices = " or ".join(map(repr, legal))
            raise UserError(f"{where}: {key} is {raw[key]!r}; supported is {choices}")
    config = {ours: raw.get(key, default) for key, (ours, default) in _ORIGINAL_CONFIG.items()}
    dim, heads = raw.get("dim", _ORIGINAL_DIM), config["num_attention_heads"]
    if not (isinstance(dim, int) and isinstance(heads, int) and heads > 0 and dim % heads == 0):
        raise UserError(f"{where}: dim {dim!r} is not a multiple of num_heads {heads!r}")
    return {**config, "attention_head_dim": dim // heads}


def inferred_config(
    shapes: Mapping[str, tuple[int, ...]], original: bool, source: Path
) -> dict[str, Any]:
    """diffusers' configuration from the shapes of the tensors.

    The number of heads leaves no trace in them: it is known for Wan's own widths only.

    Raises:
        UserError: the width is another, or a tensor that tells a size is missing.
    """

    def shape(name: str) -> tuple[int, ...]:
        stored = original_name(name) if original else name
        if stored not in shapes:
            raise UserError(f"{source}: lacks {stored}; is it a whole Wan transformer?")
        return shapes[stored]

    dim, in_channels, *patch = shape("patch_embedding.weight")
    if dim not in _WIDTHS_OF_WAN:
        widths = ", ".join(map(str, _WIDTHS_OF_WAN))
        raise UserError(
            f"{source}: the number of heads of a transformer of width {dim} cannot be told from "
            f"its weights (only of widths {widths}); give a base with a config.json"
        )
    norm = "blocks.0.norm2.weight"
    return {
        "patch_size": patch,
        "in_channels": in_channels,
        "out_channels": shape("proj_out.weight")[0] // prod(patch),
        "ffn_dim": shape("blocks.0.ffn.net.0.proj.weight")[0],
        "freq_dim": shape("condition_embedder.time_embedder.linear_1.weight")[1],
        "text_dim": shape("condition_embedder.text_embedder.linear_1.weight")[1],
        "num_attention_heads": dim // _HEAD_DIM_OF_WAN,
        "attention_head_dim": _HEAD_DIM_OF_WAN,
        "num_layers": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        "cross_attn_norm": (original_name(norm) if original else norm) in shapes,
    }


def some_of(names: Iterable[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
