"""Damaged, unfinished and foreign files are told in one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longtake.runtime.weight_files import find_problems, read_headers, read_tensors
from longtake.runtime.weights import load_transformer
from longtake.scheduler.errors import UserError

INDEX = "diffusion_pytorch_model.safetensors.index.json"
FIRST = "diffusion_pytorch_model-00001-of-00002.safetensors"
SECOND = "diffusion_pytorch_model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards and their index, as the transformer of a pipeline."""
    folder = tmp_path / "transformer"
    folder.mkdir()
    save_file({"a": torch.arange(6.0).view(2, 3)}, folder / FIRST)
    save_file({"b": torch.ones(4, dtype=torch.bfloat16)}, folder / SECOND)
    write_index(folder, {"a": FIRST, "b": SECOND})
    (folder / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def only_problem(source: Path) -> str:
    """The one problem, which the loader raises."""
    problems = find_problems(source)
    assert len(problems) == 1
    assert "\n" not in problems[0]
    with pytest.raises(UserError) as loaded:
        load_transformer(source, device=torch.device("cpu"), dtype=torch.float32)
    assert str(loaded.value) == problems[0]
    return problems[0]


def test_shards_give_their_tensors(folder: Path) -> None:
    assert find_problems(folder) == []
    stored = read_headers(folder)
    assert {name: tensor.shape for name, tensor in stored.items()} == {"a": (2, 3), "b": (4,)}
    read = {tensor.key: values for tensor, values in read_tensors(stored.values())}
    assert torch.equal(read["a"], torch.arange(6.0).view(2, 3))
    assert read["b"].dtype == torch.bfloat16


def test_a_shard_is_missing(folder: Path) -> None:
    (folder / SECOND).unlink()
    assert SECOND in only_problem(folder)


def test_a_shard_is_still_being_downloaded(folder: Path) -> None:
    (folder / SECOND).unlink()
    cache = folder.parent / ".cache" / "huggingface" / "download" / "transformer"
    cache.mkdir(parents=True)
    (cache / "xyz.incomplete").write_bytes(b"")
    told = only_problem(folder)
    assert SECOND in told
    assert "xyz.incomplete" in told


@pytest.mark.parametrize("suffix", [".part", ".incomplete"])
def test_an_unfinished_file_lies_around(suffix: str, folder: Path) -> None:
    (folder / f"{SECOND}{suffix}").write_bytes(b"")
    assert f"{SECOND}{suffix}" in only_problem(folder)


@pytest.mark.parametrize("left", [0, 5, 30, -1], ids=["empty", "length", "header", "last byte"])
def test_a_shard_is_truncated(left: int, folder: Path) -> None:
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[:left])
    told = only_problem(folder)
    assert SECOND in told
    assert "truncated" in told


def test_a_shard_is_garbage(folder: Path) -> None:
    (folder / SECOND).write_bytes(b"\xff" * 100)
    assert SECOND in only_problem(folder)


def test_a_pointer_of_git_lfs(folder: Path) -> None:
    (folder / SECOND).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    told = only_problem(folder)
    assert SECOND in told
    assert "git lfs pull" in told


def test_the_index_promises_more_than_there_is(folder: Path) -> None:
    write_index(folder, {"a": FIRST, "b": SECOND, "c": SECOND})
    told = only_problem(folder)
    assert SECOND in told
    assert "lacks c" in told


def test_two_shards_hold_the_same_tensor(folder: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, folder / SECOND)
    assert "holds a, which" in only_problem(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {"a": "../other.safetensors"}])
def test_a_broken_index(weight_map: object, folder: Path) -> None:
    write_index(folder, weight_map)
    assert INDEX in only_problem(folder)


def test_an_index_that_is_no_json(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {')
    assert "not valid JSON" in only_problem(folder)


def test_shards_without_an_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    assert "no index" in only_problem(folder)


def test_a_folder_with_a_checkpoint_only(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "self_forcing_dmd.pt")
    assert "give self_forcing_dmd.pt itself" in only_problem(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    assert "no such file" in only_problem(tmp_path / "nothing")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    assert ".safetensors, .pt and .pth" in only_problem(tmp_path / "weights.gguf")


@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_truncated_checkpoint(left: int, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"generator": {"a": torch.ones(1000)}}, file)
    file.write_bytes(file.read_bytes()[:left])
    assert "truncated" in only_problem(file)


class Intruder:
    """What runs when this is unpickled would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"generator": {"a": torch.ones(1)}, "args": Intruder(tmp_path / "mark")}, file)
    assert "could run code" in only_problem(file)
    assert not (tmp_path / "mark").exists()


def test_a_checkpoint_that_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "model.pt")
    assert "holds a list" in only_problem(tmp_path / "model.pt")
