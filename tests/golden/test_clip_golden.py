"""Video-Infinity's attention, by what `LaunchAttention` makes of a launch that the strategy wrote.

The vectors are of attention over time alone, at some places of a picture: here those are a batch,
and a frame has one token. Every key is turned before, so that the rotation of its true position
leaves it as it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import linear

from longtake.kernels.rotary import rotary_table, rotate
from longtake.parallel.mesh import alone
from longtake.parallel.sequence import SequenceParallel
from longtake.runtime.key_store import KeyStore
from longtake.runtime.launches import Launches
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.clip import Clip, Scopes
from longtake.scheduler.task import Kind, Task

SYSTEMS = ("video_infinity_attention",)
TOLERANCE = 2e-4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A golden file."""

    path: Path

    @cached_property
    def parameters(self) -> dict[str, Any]:
        with safe_open(self.path, "pt") as file:
            return {name: json.loads(value) for name, value in file.metadata().items()}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def clip(self, biased: bool) -> Clip:
        """The strategy: in the first of two steps the global scope is raised."""
        told = self.parameters
        bias = told["local_phase"]["local_biase"] if biased else 0.0
        assert told["global_phase"]["global_biase"] == told["local_phase"]["local_biase"]
        scopes = Scopes(told["padding"], told["top_k"], bias, switch=0.5, repeats=True)
        return Clip(scopes, length=told["frames_per_rank"])

    def launch(self, early: bool, biased: bool) -> Task:
        """Of the first step, or of the second."""
        frames, heads = self.parameters["frames"], self.parameters["heads"]
        spec = ModelSpec(1, heads, self.parameters["head_dim"], 8, 4, 2, 1024, 3)
        seconds = spec.pixel_frames(frames) / 16
        request = Request((Cue(0, "a prompt"),), seconds, 16, 16, 16)
        tasks = Schedule(self.clip(biased), request, spec, steps=2)
        launches = [task for task in tasks if task.kind is Kind.DENOISE]
        return launches[0 if early else 1]

    def projected(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, (places, frames, heads, head_dim)."""
        x, heads = self.tensors["hidden_states"], self.parameters["heads"]
        q, k, v = (linear(x, self.tensors[name]) for name in ("to_q", "to_k", "to_v"))
        table = rotary_table(
            [-frame for frame in range(x.shape[1])], 1, 1, self.parameters["head_dim"], CPU
        )
        q, k, v = (each.unflatten(2, (heads, -1)) for each in (q, k, v))
        return rotate(q, table), rotate(k, table), v


def attend(case: Case, task: Task) -> Tensor:
    """What a launch makes of all frames, (places, frames, channels)."""
    mesh, told = alone(CPU), case.parameters
    store = KeyStore(range(1), 0, 1, 1, told["heads"], told["head_dim"], CPU, torch.float32)
    sequence = SequenceParallel(mesh, 1)
    launches = Launches(store, (1, 1), told["head_dim"], CPU, sequence, mesh.clip)
    mixed = launches.attention(task).attend(0, *case.projected())
    return linear(mixed.flatten(2), case.tensors["to_out"], case.tensors["to_out_bias"])


@pytest.mark.parametrize("output", ["400", "800", "900", "unbiased"])
def test_clip_04_attention_is_that_of_video_infinity_without_what_lies_outside(
    golden_file: Path, output: str
) -> None:
    case = Case(golden_file)
    told = case.parameters
    assert case.clip(True).scopes.sample(told["frames"]) == told["global_frames"]
    biased = output != "unbiased"
    early = biased and int(output) >= told["timestep_switch"]
    made = attend(case, case.launch(early, biased))
    true = case.tensors[f"output_corrected_{output}"]
    assert float((made - true).abs().max()) < TOLERANCE
