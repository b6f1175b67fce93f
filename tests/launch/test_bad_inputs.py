"""Whatever is wrong with a request: one clear line, exit code 2, and nothing lost or half-made."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

from longtake.launch.api import generate, resume
from longtake.scheduler.errors import UserError

PROMPT = "a large red circle bouncing around slowly on a gray background"
SHORT = ["--seconds", "1", "--steps", "1"]

Cli = Callable[..., Result]
Snapshot = Callable[[Path], dict[str, str]]
Refuses = Callable[..., str]


@pytest.fixture
def refuses(cli: Cli, tmp_path: Path, snapshot: Snapshot) -> Refuses:
    """Run a command that must fail; returns the one line that it says."""

    def check(*words: str | Path) -> str:
        before = snapshot(tmp_path)
        result = cli(*words)
        assert result.exit_code == 2, result.output
        assert snapshot(tmp_path) == before
        lines = result.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
        assert result.stdout == ""
        return lines[0].removeprefix("error: ")

    return check


def test_unknown_model(refuses: Refuses) -> None:
    line = refuses("generate", PROMPT, "--model", "sora")
    assert line.startswith(
        "unknown model 'sora'; known: causvid, longlive, self-forcing, tinyworld"
    )


def test_missing_weights(refuses: Refuses, own_model: Path) -> None:
    line = refuses("generate", PROMPT, "--model", "self-forcing")
    assert "`hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in line
    assert "--set model.folder=PATH --set model.checkpoint=PATH" in line
    line = refuses(
        "generate", PROMPT, "--model", "wan2.1-t2v-14b", "--set", "model.folder=/nowhere"
    )
    assert "there is no folder at /nowhere; get it with `hf download" in line
    (own_model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    line = refuses("generate", PROMPT, "--model", own_model)
    assert "vae: no safetensors file in this folder" in line


def test_corrupt_safetensors(refuses: Refuses, own_model: Path) -> None:
    file = own_model / "transformer" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    line = refuses("generate", PROMPT, "--model", own_model)
    assert f"{file}: truncated or not a safetensors file" in line


@pytest.mark.parametrize("seconds", ["0", "-5", "nan", "0.001"])
def test_zero_and_negative_seconds(refuses: Refuses, seconds: str) -> None:
    assert "seconds" in refuses("generate", PROMPT, "--seconds", seconds)


def test_absurd_size(refuses: Refuses) -> None:
    line = refuses("generate", PROMPT, "--size", "160000x160000")
    assert "160000x160000 needs about" in line and "take a smaller size" in line


@pytest.mark.parametrize(
    ("side", "words"),
    [(16000, "fewer workers"), (160000, "the H.264 encoder can't make 160000x160000 at 16 fps")],
)
def test_what_workers_or_the_encoder_refuse_leaves_nothing(
    cli: Cli, tmp_path: Path, snapshot: Snapshot, side: int, words: str
) -> None:
    """That is found out once the run has been announced."""
    before = snapshot(tmp_path)
    shared = ("--workers", "2", "--plan", "fit")  # the planner would not even announce it
    result = cli("generate", PROMPT, "--size", f"{side}x{side}", *shared)
    assert result.exit_code == 2 and snapshot(tmp_path) == before
    _, said = result.stderr.splitlines()
    assert said.startswith("error: ") and words in said


@pytest.mark.parametrize(("size", "word"), [("65x64", "multiples of 16"), ("big", "WIDTHxHEIGHT")])
def test_size_that_cannot_be_tiled(refuses: Refuses, size: str, word: str) -> None:
    assert word in refuses("generate", PROMPT, "--size", size)


@pytest.mark.parametrize(
    ("cues", "words"),
    [
        (["9=a", "5=b"], "prompts must be in order of time: 5 s comes after 9 s"),
        (["70=a"], "a prompt starts at 70 s, but the video ends at 60 s"),
        (["0=a"], "prompts must be in order of time: 0 s comes after 0 s"),
        (["5"], "--prompt-at must be SECONDS=TEXT"),
        (["soon=a"], "--prompt-at must be SECONDS=TEXT"),
        (["5= "], "the prompt is empty"),
        (["5=a", "5.05=b"], "would never be seen"),
    ],
)
def test_timeline_out_of_order(refuses: Refuses, cues: list[str], words: str) -> None:
    options = [word for cue in cues for word in ("--prompt-at", cue)]
    assert words in refuses("generate", PROMPT, *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "/proc/video.mp4"], "cannot write /proc/video.mp4"),
        (["--out", "nowhere/video.mp4"], "there is no folder nowhere"),
        (["--out", "video.avi"], "legal is '.mp4'"),
        (["--run-dir", "/proc/run"], "cannot write /proc/run"),
        (["--frames", "nowhere/frames"], "there is no folder nowhere"),
    ],
)
def test_unwritable_output(refuses: Refuses, options: list[str], words: str) -> None:
    assert words in refuses("generate", PROMPT, *options)


def test_existing_output(refuses: Refuses, cli: Cli) -> None:
    Path("video.mp4").write_text("a video")
    assert "video.mp4 exists" in refuses("generate", PROMPT, *SHORT)
    Path("frames").mkdir()
    Path("frames/000000.png").write_text("a frame")
    line = refuses("generate", PROMPT, *SHORT, "--out", "new.mp4", "--frames", "frames")
    assert "frames already holds 1 frames" in line and "--force" in line
    Path("other.run").mkdir()
    Path("other.run/notes.txt").write_text("not of a run")
    for force in ([], ["--force"]):
        line = refuses("generate", PROMPT, *SHORT, "--out", "other.mp4", *force)
        assert "other.run is no run directory and not empty" in line


def test_existing_run(refuses: Refuses) -> None:
    generate(PROMPT, seconds=1, steps=1)
    Path("video.mp4").unlink()
    line = refuses("generate", PROMPT, *SHORT)
    assert "`longtake resume video.run`" in line and "--force" in line


@pytest.fixture
def tiny_disk(mount_disk: Callable[[int], Path]) -> Path:
    """A file system that is full after some blocks."""
    return mount_disk(56)


def test_full_disk(
    cli: Cli,
    tiny_disk: Path,
    whole_run: Path,
    request_of_4s: dict[str, Any],
    read_blocks: Callable[[Path], dict[str, str]],
) -> None:
    out = tiny_disk / "video.mp4"
    with pytest.raises(UserError) as caught:
        generate(**request_of_4s, out=out)
    words = str(caught.value)
    assert "No space left on device; finished blocks are kept, make room and resume" in words
    assert "\n" not in words and not out.exists()
    kept = read_blocks(out.with_suffix(".run"))
    assert 0 < len(kept) < len(read_blocks(whole_run))
    subprocess.run(["mount", "-o", "remount,size=8m", str(tiny_disk)], check=True)
    assert resume(out.with_suffix(".run")).finished
    assert read_blocks(out.with_suffix(".run")) == read_blocks(whole_run)


def test_unknown_key(refuses: Refuses) -> None:
    line = refuses("generate", PROMPT, "--set", "strategy.windw=9")
    assert line.startswith("strategy: unknown key 'windw'; known: kind, window, sink")


def test_wrong_dtype_and_device(refuses: Refuses) -> None:
    line = refuses("generate", PROMPT, "--dtype", "float8")
    assert line == "dtype: expected one of auto, float32, bfloat16, float16, got 'float8'"
    assert "legal here: auto, cpu" in refuses("generate", PROMPT, "--device", "tpu")


def test_model_of_another_family(refuses: Refuses, own_model: Path) -> None:
    config = own_model / "transformer" / "config.json"
    whole = json.loads(config.read_text())
    config.write_text(json.dumps({"_class_name": "FluxTransformer2DModel", "num_layers": 19}))
    line = refuses("generate", PROMPT, "--model", own_model)
    assert "is a FluxTransformer2DModel; legal are WanTransformer3DModel" in line
    config.write_text(json.dumps({**whole, "num_layers": 7}))
    line = refuses("generate", PROMPT, "--model", own_model)
    assert "7 layers" in line and "--set model.folder=" in line
    config.write_text(json.dumps({**whole, "in_channels": 20, "out_channels": 20}))
    line = refuses("generate", PROMPT, "--set", f"model.folder={own_model}")
    assert "only text-to-video models are supported" in line


def test_journal_of_another_request(refuses: Refuses, own_model: Path) -> None:
    run_dir = generate(PROMPT, seconds=1, steps=1, model=own_model).run_dir
    Path("video.mp4").unlink()
    manifest = run_dir / "manifest.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**told, "request": {**told["request"], "seed": 1}}))
    assert "was changed since the run began" in refuses("resume", run_dir)
    manifest.write_text("{}")
    assert "manifest.json is damaged" in refuses("resume", run_dir)
    manifest.write_text(json.dumps(told))
    file = own_model / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = {name: torch.clone(tensor) for name, tensor in load_file(file).items()}
    tensors["blocks.0.attn1.to_q.weight"] += 0.01
    save_file(tensors, file, metadata={"format": "pt"})
    assert "is the run of other weights: the transformer at" in refuses("resume", run_dir)
    assert "is not a run directory" in refuses("resume", own_model)


def test_interrupted_download(refuses: Refuses, own_model: Path) -> None:
    (own_model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    unfinished = own_model / ".cache" / "huggingface" / "download" / "transformer" / "x.incomplete"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"half")
    line = refuses("generate", PROMPT, "--model", own_model)
    assert f"{unfinished} is an unfinished download" in line
