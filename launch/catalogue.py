"""Which models there are, where their files lie, and how to get those that are not here.

What reads files needs torch, so it is imported where it is called: names alone do without.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from longtake.launch.config import compose_settings, options
from longtake.launch.settings import ModelSettings
from longtake.scheduler.errors import UserError

PACKAGED = "pkg://"
# Text-to-video models by what tells them apart in a transformer's configuration.
_SHAPES = {
    (30, 12, 16): "wan2.1-t2v-1.3b",
    (40, 40, 16): "wan2.1-t2v-14b",
}


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue. `problem` is None for a model that can be used as it is."""

    settings: ModelSettings
    folder: Path | None
    problem: str | None


def choose(model: str) -> tuple[str, Path | None]:
    """A model's name in the catalogue, and the folder if one was given in place of a name.

    Raises:
        UserError: neither a known name nor a folder of a known model.
    """
    known = options("model")
    if model in known:
        return model, None
    if not Path(model).is_dir():
        raise UserError(
            f"unknown model {model!r}; known: {', '.join(known)}, or the folder of a Wan 2.1"
        )
    folder = Path(model).absolute()
    return _recognise(folder), folder


def _recognise(folder: Path) -> str:
    from longtake.runtime.model_folder import find_layout

    where = find_layout(folder).config
    shape = _shape(where)
    tinyworld = find_layout(_packaged("longtake.models/tinyworld")).config
    names = {**_SHAPES, _shape(tinyworld): "tinyworld"}
    if shape not in names:
        raise UserError(
            f"{where}: {shape[0]} layers, {shape[1]} heads and {shape[2]} channels are no known "
            "model's; name the one it is like and give the folder, such as "
            f"--model wan2.1-t2v-1.3b --set model.folder={folder}"
        )
    return names[shape]


def _shape(where: Path) -> tuple[Any, ...]:
    from longtake.runtime.weight_files import read_json
    from longtake.runtime.weight_layouts import transformer_config

    config = transformer_config(read_json(where), where)
    return tuple(config.get(k) for k in ("num_layers", "num_attention_heads", "in_channels"))


def _packaged(place: str) -> Path:
    package, _, folder = place.partition("/")
    return Path(str(files(package))) / folder


def locate(model: ModelSettings) -> tuple[Path, Path | None]:
    """The folder of a model, and its checkpoint where it has one.

    Raises:
        UserError: one is needed and not given, with the command that fetches it; or it is not
            where it should be.
    """
    needed = {"folder": (model.folder, model.folder_from)}
    if model.checkpoint is not None or model.checkpoint_from is not None:
        needed["checkpoint"] = (model.checkpoint, model.checkpoint_from)
    missing = [key for key, (place, _) in needed.items() if place is None]
    if missing:
        how = " and ".join(f"`{needed[key][1]}`" for key in missing)
        where = " ".join(f"--set model.{key}=PATH" for key in missing)
        raise UserError(f"{model.name} is not here: get it with {how}, then add {where}")
    paths = {key: _existing(model, key, place or "", how) for key, (place, how) in needed.items()}
    return paths["folder"], paths.get("checkpoint")


def _existing(model: ModelSettings, key: str, place: str, source: str | None) -> Path:
    if place.startswith(PACKAGED):
        return _packaged(place.removeprefix(PACKAGED))
    path = Path(place).expanduser().absolute()
    if not path.exists():
        how = f"; get it with `{source}`" if source else ""
        raise UserError(f"{model.name}: there is no {key} at {path}{how}")
    return path


def catalogue() -> list[Entry]:
    """All models of `configs/`, with what still keeps each from being used."""
    from longtake.runtime.model_folder import find_layout

    entries = []
    for name in options("model"):
        model = compose_settings({"model": name}).model
        try:
            folder, checkpoint = locate(model)
            find_layout(folder, checkpoint).preflight()
        except UserError as error:
            entries.append(Entry(model, None, str(error)))
        else:
            entries.append(Entry(model, folder, None))
    return entries
