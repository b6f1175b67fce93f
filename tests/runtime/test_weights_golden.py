"""A checkpoint as Self Forcing publishes it computes what the published code computed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from longtake.runtime.weights import load_transformer


def test_first_forward_of_self_forcing(golden_folder: Path) -> None:
    model = load_transformer(
        golden_folder / "self_forcing_tiny.pt",
        device=torch.device("cpu"),
        dtype=torch.float32,
        base=golden_folder / "config.json",
    )
    golden = load_file(golden_folder / "self_forcing_full.safetensors")
    frames = golden["flow"].shape[2]
    text = torch.nn.functional.pad(golden["context"], (0, 0, 0, 16 - golden["context"].shape[1]))
    with torch.no_grad():
        flow = model(
            golden["noise"][:, :frames].transpose(1, 2),
            golden["denoising_timesteps"][:1],
            text,
        ).sample.transpose(1, 2)
    assert (flow - golden["flow"][0]).abs().max() < 1e-4
