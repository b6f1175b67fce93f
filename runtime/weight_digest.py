"""A short name for weights, for the manifest beside a video."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from longtake.runtime.weight_files import read_headers, read_json, read_tensors

_SAMPLE = 4096  # elements


def weights_digest(source: Path) -> str:
    """A SHA-256 that tells weights apart: hexadecimal, 64 digits.

    Of every tensor it covers name, shape, dtype, and three runs of 4096 elements (start, middle,
    end); tensors of up to 12288 elements are covered whole; and so is the `config.json`, where the
    source is a folder. So it is quick for any size, and the same for one file or many shards.

    It notices another checkpoint or a fine-tuning that touches the tensors, for those change all
    over. It is no proof against tampering, nor against a flipped bit between the samples.

    Raises:
        UserError: a file is missing, unfinished, truncated or corrupt.
    """
    digest = hashlib.sha256()
    if source.is_dir() and (source / "config.json").is_file():
        config = read_json(source / "config.json")
        lasting = {key: value for key, value in config.items() if not key.startswith("_")}
        digest.update(json.dumps(lasting, sort_keys=True).encode())
    sums = {
        f"{tensor.key} {values.dtype} {tuple(values.shape)}": _sampled(values)
        for tensor, values in read_tensors(read_headers(source).values())
    }
    for name, checksum in sorted(sums.items()):
        digest.update(name.encode())
        digest.update(checksum)
    return digest.hexdigest()


def _sampled(values: Tensor) -> bytes:
    flat = values.reshape(-1)
    last = flat.numel() - _SAMPLE
    runs = [flat]
    if flat.numel() > 3 * _SAMPLE:
        runs = [flat[start : start + _SAMPLE] for start in (0, last // 2, last)]
    checksum = hashlib.sha256()
    for run in runs:
        checksum.update(run.contiguous().view(torch.uint8).numpy().tobytes())
    return checksum.digest()
