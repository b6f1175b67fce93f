"""Files that hold weights: found in a folder, checked by their headers, read tensor by tensor.

Nothing here knows a model. A safetensors file and a PyTorch checkpoint (`.pt`, `.pth`; read as
weights only, so that no code in it can run) give the same: names, shapes, and tensors on demand.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longtake.scheduler.errors import UserError

CHECKPOINT_SUFFIXES = (".pt", ".pth")
_DEFAULT_STEMS = ("diffusion_pytorch_model", "model")  # of diffusers and of transformers
_UNFINISHED = ("*.incomplete", "*.part")
_LFS_POINTER = b"version https://git-lfs"
_CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as the header of its file describes it."""

    file: Path
    key: str  # its name in the file; keys of nested dictionaries are joined with dots
    shape: tuple[int, ...]
    floating: bool


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: must be a JSON object, is a {type(content).__name__}")
    return content


def find_problems(source: Path) -> list[str]:
    """Everything that `read_headers` could raise, each in a line of its own."""
    return _examine(source)[1]


def read_headers(source: Path) -> dict[str, StoredTensor]:
    """What a weights file, or a folder of them, holds, by name; no weight is read.

    Raises:
        UserError: a file is missing, unfinished, truncated or of no known kind.
    """
    stored, problems = _examine(source)
    raise_first(problems)
    return stored


def raise_first(problems: list[str]) -> None:
    """Raise the first problem, and tell how many more there are.

    Raises:
        UserError: there is one.
    """
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)


def _examine(source: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """All tensors of a weights file or of a folder, and every problem found on the way."""
    try:
        files, index = _weight_files(source)
    except UserError as error:
        return {}, [str(error)]
    stored: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for file in files:
        if not file.is_file():
            problems.append(f"{file}: missing, though the index names it{unfinished_hint(file)}")
            continue
        try:
            tensors = _header(file)
        except UserError as error:
            problems.append(str(error))
            continue
        twice = sorted(stored.keys() & {tensor.key for tensor in tensors})
        if twice:
            problems.append(
                f"{file}: holds {twice[0]}, which {stored[twice[0]].file.name} holds too"
            )
        stored |= {tensor.key: tensor for tensor in tensors}
    if not problems:
        problems = [
            f"{source / name}: lacks {key}, which the index says is there"
            for key, name in index.items()
            if key not in stored or stored[key].file.name != name
        ]
    return stored, problems


def read_tensors(stored: Iterable[StoredTensor]) -> Iterator[tuple[StoredTensor, Tensor]]:
    """Read tensors one after the other, file by file, on the CPU.

    A tensor is a view of the memory-mapped file: nothing is copied here. Files are opened anew
    every few dozen megabytes, so that what was read and let go does not stay in memory.
    """
    ordered = sorted(stored, key=lambda tensor: (tensor.file, tensor.key))
    for file, tensors in groupby(ordered, key=lambda tensor: tensor.file):
        for chunk in _chunks(tensors):
            read = _reader(file)
            for tensor in chunk:
                yield tensor, read(tensor.key)


def _chunks(tensors: Iterable[StoredTensor]) -> Iterator[list[StoredTensor]]:
    chunk: list[StoredTensor] = []
    elements = 0
    for tensor in tensors:
        chunk.append(tensor)
        elements += prod(tensor.shape)
        if elements >= _CHUNK_ELEMENTS:
            yield chunk
            chunk, elements = [], 0
    if chunk:
        yield chunk


def _weight_files(source: Path) -> tuple[list[Path], dict[str, str]]:
    """The files to read, and the index (tensor name to file name; empty without one)."""
    if source.is_file():
        if source.suffix not in (".safetensors", *CHECKPOINT_SUFFIXES):
            raise UserError(f"{source}: not a weights file; legal are .safetensors, .pt and .pth")
        return [source], {}
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder{unfinished_hint(source)}")
    unfinished = [file for pattern in _UNFINISHED for file in sorted(source.glob(pattern))]
    if unfinished:
        raise UserError(f"{unfinished[0]}: an unfinished download; finish it, or remove the file")
    for stem in _DEFAULT_STEMS:
        index_file = source / f"{stem}.safetensors.index.json"
        if index_file.is_file():
            index = _read_index(index_file)
            return [source / name for name in sorted(set(index.values()))], index
        if (source / f"{stem}.safetensors").is_file():
            return [source / f"{stem}.safetensors"], {}
    files = sorted(source.glob("*.safetensors"))
    if len(files) == 1:
        return files, {}
    if files:
        raise UserError(
            f"{source}: {len(files)} safetensors files and no index that says which belong "
            f"together{unfinished_hint(source / 'index')}"
        )
    others = sorted(file for file in source.iterdir() if file.suffix in CHECKPOINT_SUFFIXES)
    advice = f"; give {others[0].name} itself" if len(others) == 1 else ""
    hint = unfinished_hint(source / "weights") or advice
    raise UserError(f"{source}: no safetensors file in this folder{hint}")


def _read_index(file: Path) -> dict[str, str]:
    index = read_json(file).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError(f"{file}: has no weight_map from tensor names to files")
    strange = [name for name in index.values() if not isinstance(name, str) or "/" in name]
    if strange:
        raise UserError(f"{file}: {strange[0]!r} is not the name of a file beside it")
    return index


def unfinished_hint(missing: Path) -> str:
    """Where the download tool of the Hugging Face hub keeps what it has not finished."""
    for root in missing.parents[:3]:
        cache = root / ".cache" / "huggingface" / "download"
        for file in sorted(cache.rglob("*.incomplete")):
            return f"; {file} is an unfinished download"
    return ""


def _header(file: Path) -> list[StoredTensor]:
    if file.suffix in CHECKPOINT_SUFFIXES:
        return [
            StoredTensor(file, key, tuple(tensor.shape), tensor.is_floating_point())
            for key, tensor in _open_checkpoint(file).items()
        ]
    handle = _open_safetensors(file)
    stored = []
    for key in handle.keys():  # noqa: SIM118  (not a dictionary)
        tensor = handle.get_slice(key)
        floating = tensor.get_dtype().startswith(("F", "BF"))
        stored.append(StoredTensor(file, key, tuple(tensor.get_shape()), floating))
    return stored


def _reader(file: Path) -> Callable[[str], Tensor]:
    if file.suffix in CHECKPOINT_SUFFIXES:
        return _open_checkpoint(file).__getitem__
    read: Callable[[str], Tensor] = _open_safetensors(file).get_tensor
    return read


def _open_safetensors(file: Path) -> safe_open:
    """Map a file; the library refuses one whose length is not what its header promises."""
    _refuse_pointer(file)
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: truncated or not a safetensors file ({error})") from error


def _open_checkpoint(file: Path) -> dict[str, Tensor]:
    """Map a PyTorch checkpoint: its tensors by dotted name; whatever else it holds is left."""
    _refuse_pointer(file)
    if not zipfile.is_zipfile(file):
        raise UserError(f"{file}: truncated, or not a checkpoint of PyTorch 1.6 or later")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file}: holds more than tensors, and reading it could run code; "
            "save its state dict alone"
        ) from error
    except (RuntimeError, EOFError, KeyError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file}: not a readable PyTorch checkpoint ({reason})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: must hold a state dict, holds a {type(content).__name__}")
    return dict(_flatten(content, ""))


def _flatten(content: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")


def _refuse_pointer(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    if start == _LFS_POINTER:
        raise UserError(f"{file}: a git-lfs pointer, not the weights; run `git lfs pull`")
