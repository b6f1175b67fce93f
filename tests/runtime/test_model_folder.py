"""Both layouts are told apart, and what is missing in them is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longtake.runtime.model_folder import Layout, find_layout
from longtake.scheduler.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def diffusers_folder(folder: Path) -> Path:
    for part in ("transformer", "vae", "text_encoder"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
        save_file({"a": torch.ones(1)}, folder / part / WEIGHTS)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "model_index.json").write_text('{"transformer_2": [null, null]}')
    return folder


def original_folder(folder: Path) -> Path:
    """As `hf download Wan-AI/Wan2.1-T2V-1.3B` leaves it."""
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    (folder / "google" / "umt5-xxl" / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, folder / WEIGHTS)
    for name in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"):
        torch.save({"a": torch.ones(1)}, folder / name)
    return folder


MakeFolder = Callable[[Path], Path]
FOLDERS = pytest.mark.parametrize("make", [diffusers_folder, original_folder])


def refusal(layout: Layout) -> str:
    with pytest.raises(UserError) as caught:
        layout.preflight()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@FOLDERS
def test_a_whole_folder_has_all_its_parts(make: MakeFolder, tmp_path: Path) -> None:
    layout = find_layout(make(tmp_path / "wan"))
    layout.preflight()
    assert layout.config.is_file()
    assert layout.tokenizer.is_dir()
    assert all(source.exists() for source in layout.weights.values())
    assert len({*layout.weights.values(), layout.tokenizer}) == 4


@FOLDERS
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_a_part_that_is_missing_is_named(make: MakeFolder, part: str, tmp_path: Path) -> None:
    layout = find_layout(make(tmp_path / "wan"))
    source: Path = getattr(layout, part)
    lost = {"transformer": source / WEIGHTS, "tokenizer": source / "tokenizer.json"}.get(part)
    if lost is None:
        lost = source if source.is_file() else source / WEIGHTS
    lost.unlink()
    told = refusal(layout)
    assert told.startswith(f"{source}")
    assert told.endswith(
        ("no such file", "no such file or folder", "no safetensors file in this folder")
    )
    unfinished = tmp_path / "wan" / ".cache" / "huggingface" / "download" / "x.incomplete"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    assert refusal(layout) == f"{told}; {unfinished} is an unfinished download"


@FOLDERS
def test_a_checkpoint_replaces_the_transformer(make: MakeFolder, tmp_path: Path) -> None:
    folder = make(tmp_path / "wan")
    plain = find_layout(folder)
    torch.save({"generator": {"a": torch.ones(1)}}, tmp_path / "checkpoint.pt")
    layout = find_layout(folder, tmp_path / "checkpoint.pt")
    assert layout.weights == {**plain.weights, "transformer": tmp_path / "checkpoint.pt"}
    assert layout.config == plain.config
    (plain.transformer / WEIGHTS).unlink()  # nobody reads it
    layout.preflight()


def test_all_problems_are_counted(tmp_path: Path) -> None:
    layout = find_layout(original_folder(tmp_path))
    layout.vae.unlink()
    (layout.tokenizer / "tokenizer.json").unlink()
    assert refusal(layout) == f"{layout.vae}: no such file or folder (and 1 more)"


def test_folders_of_neither_layout(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with pytest.raises(UserError, match=r"neither transformer/config\.json.* nor config\.json"):
        find_layout(tmp_path)
    unfinished = tmp_path / ".cache" / "huggingface" / "download" / "x.incomplete"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    with pytest.raises(UserError, match=r"x\.incomplete is an unfinished download"):
        find_layout(tmp_path)


def test_two_transformers(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path)
    parts = {"transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(parts))
    with pytest.raises(UserError, match="has two transformers"):
        find_layout(folder)
