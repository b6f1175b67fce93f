"""The digest tells weights apart, and does not depend on how they are cut into files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from longtake.runtime.weight_digest import weights_digest

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "large": torch.randn(200, 100, generator=generator),
        "small": torch.randn(7, generator=generator).to(torch.bfloat16),
        "scalar": torch.tensor(2.0),
    }


def write(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / FILE)
    (folder / "config.json").write_text(json.dumps({"layers": 2} | config))
    return folder


def test_it_depends_on_content_alone(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    one = write(tmp_path / "one", tensors, _diffusers_version="0.40")
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "config.json").write_text('{"_diffusers_version": "0.42", "layers": 2}')
    for name, tensor in tensors.items():
        save_file({name: tensor}, shards / f"{name}.safetensors")
    weight_map = {name: f"{name}.safetensors" for name in tensors}
    (shards / f"{FILE}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    digest = weights_digest(one)
    assert len(bytes.fromhex(digest)) == 32
    assert digest == weights_digest(one) == weights_digest(shards)


def test_a_checkpoint_equals_the_file_of_the_same_tensors(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"tensors": tensors}, tmp_path / "a.pt")
    save_file({f"tensors.{n}": t for n, t in tensors.items()}, tmp_path / "a.safetensors")
    assert weights_digest(tmp_path / "a.pt") == weights_digest(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "place"), [("small", 3), ("scalar", 0), ("large", 0), ("large", 19999)]
)
def test_a_changed_weight_shows(
    name: str, place: int, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    before = weights_digest(write(tmp_path / "before", tensors))
    tensors[name].view(-1)[place] += 1.0
    assert weights_digest(write(tmp_path / "after", tensors)) != before


def test_name_shape_dtype_and_config_show(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    large = tensors["large"]
    rest = {name: tensor for name, tensor in tensors.items() if name != "large"}
    digests = {
        weights_digest(write(tmp_path / "as is", tensors)),
        weights_digest(write(tmp_path / "name", rest | {"other": large})),
        weights_digest(write(tmp_path / "shape", rest | {"large": large.view(100, 200)})),
        weights_digest(write(tmp_path / "dtype", rest | {"large": large.view(torch.int32)})),
        weights_digest(write(tmp_path / "config", tensors, layers=3)),
    }
    assert len(digests) == 5
