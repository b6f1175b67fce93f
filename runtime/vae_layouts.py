"""The layouts in which Wan's VAE is published, told in diffusers' words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from longtake.runtime.weight_files import StoredTensor, read_headers, read_json
from longtake.runtime.weight_layouts import config_file, known_config, with_defaults
from longtake.scheduler.errors import UserError

_ORIGINAL_NAME = "encoder.conv1.weight"
_LATENT_CHANNELS = 16  # diffusers' defaults hold the statistics of these, and of no others


def vae_names(keys: Iterable[str]) -> dict[str, str]:
    """The VAE's tensors in a file: key to diffusers' name."""
    names = {key: key for key in keys}
    if _ORIGINAL_NAME in names:
        return {key: name for name, key in convert_wan_vae_to_diffusers(names).items()}
    return names


def read_vae_config(source: Path) -> dict[str, Any]:
    """The configuration of a VAE, with diffusers' defaults; no weight is read.

    It is told by the `config.json` in or beside `source`, or by the shapes of an original file.

    Raises:
        UserError: it is missing, damaged or that of another VAE.
    """
    stored = read_headers(source)
    if _ORIGINAL_NAME in stored:
        return with_defaults(AutoencoderKLWan, _inferred(stored, source))
    where = config_file(source)
    raw = read_json(where)
    if raw.get("_class_name") != "AutoencoderKLWan":
        found = raw.get("_class_name", "of no known class")
        raise UserError(f"{where}: is {found}; legal is AutoencoderKLWan")
    config = {key: value for key, value in raw.items() if not key.startswith("_")}
    return with_defaults(AutoencoderKLWan, known_config(AutoencoderKLWan, config, where))


def _inferred(stored: Mapping[str, StoredTensor], source: Path) -> dict[str, Any]:
    try:
        return {
            "base_dim": stored["encoder.conv1.weight"].shape[0],
            "decoder_base_dim": stored["decoder.head.2.weight"].shape[1],
            "z_dim": _LATENT_CHANNELS,
        }
    except (KeyError, IndexError) as error:
        raise UserError(f"{source}: not a whole Wan VAE; no usable {error}") from error
