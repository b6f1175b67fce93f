"""Models by name and by folder, and checkpoints that replace a folder's transformer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtake.launch.api import generate
from longtake.launch.catalogue import catalogue, choose, locate
from longtake.launch.config import compose_settings, options
from longtake.scheduler.errors import UserError

PROMPT = "a large red circle bouncing around slowly on a gray background"
WAN = {"_class_name": "WanTransformer3DModel", "in_channels": 16, "attention_head_dim": 128}


def pipeline(folder: Path, **config: Any) -> str:
    """A folder with as much of a pipeline as tells what it is."""
    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    (folder / "transformer" / "config.json").write_text(json.dumps({**WAN, **config}))
    return str(folder)


def test_an_original_folder_is_recognised(tmp_path: Path) -> None:
    config = {"_class_name": "WanModel", "model_type": "t2v", "dim": 1536, "in_dim": 16}
    config |= {"num_heads": 12, "num_layers": 30}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert choose(str(tmp_path)) == ("wan2.1-t2v-1.3b", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "i2v"}))
    with pytest.raises(UserError, match="model_type is 'i2v'"):
        choose(str(tmp_path))


def test_folders_are_recognised(tmp_path: Path, tinyworld: Path) -> None:
    small = pipeline(tmp_path / "small", num_layers=30, num_attention_heads=12)
    assert choose(small) == ("wan2.1-t2v-1.3b", Path(small))
    large = pipeline(tmp_path / "large", num_layers=40, num_attention_heads=40)
    assert choose(large) == ("wan2.1-t2v-14b", Path(large))
    assert choose(str(tinyworld)) == ("tinyworld", tinyworld)
    assert choose("longlive") == ("longlive", None)


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    image = pipeline(tmp_path / "i2v", num_layers=40, num_attention_heads=40, in_channels=36)
    with pytest.raises(UserError, match="36 channels are no known model's"):
        choose(image)
    with pytest.raises(UserError, match="it has neither transformer"):
        choose(str(tmp_path))


def test_two_transformers_are_refused(own_model: Path) -> None:
    index = own_model / "model_index.json"
    parts = {
        **json.loads(index.read_text()),
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
    }
    index.write_text(json.dumps(parts))
    (own_model / "transformer_2").mkdir()
    with pytest.raises(UserError, match="has two transformers"):
        generate(PROMPT, model=own_model)


def test_paths_are_found_from_home_and_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "file.pt").write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    places = ["model.folder=~/base", "model.checkpoint=file.pt"]
    model = compose_settings({"model": "self-forcing"}, places).model
    assert locate(model) == (tmp_path / "base", tmp_path / "file.pt")


def test_catalogue_says_what_is_missing() -> None:
    entries = {entry.settings.name: entry for entry in catalogue()}
    assert list(entries) == options("model")
    assert entries["tinyworld"].problem is None
    missing = entries["causvid"].problem or ""
    assert missing.count("`hf download ") == 2 and "--set model.checkpoint=PATH" in missing


def test_checkpoint_replaces_the_transformer(
    tmp_path: Path, tinyworld: Path, read_blocks: Callable[[Path], dict[str, str]]
) -> None:
    request: dict[str, Any] = {"seconds": 0.5, "steps": 1}
    plain = generate(PROMPT, **request, out=tmp_path / "plain.mp4")
    checkpoint = tinyworld / "transformer" / "diffusion_pytorch_model.safetensors"
    settings = [f"model.checkpoint={checkpoint}"]
    same = generate(PROMPT, **request, out=tmp_path / "same.mp4", settings=settings)
    assert same.manifest["config"]["model"]["checkpoint"] == str(checkpoint)
    assert read_blocks(same.run_dir) == read_blocks(plain.run_dir)
    with pytest.raises(UserError, match="there is no checkpoint at /nowhere"):
        generate(PROMPT, out=tmp_path / "none.mp4", settings=["model.checkpoint=/nowhere"])
