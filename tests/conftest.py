"""What all tests share: settings, golden vectors, and a tiny model of random weights."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from safetensors import safe_open

if TYPE_CHECKING:
    from longtake.runtime.model import Model

torch.set_num_threads(1)  # tests run side by side, and some start processes of their own

settings.register_profile("longtake", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("longtake")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU, and torch sees none")


def find_golden_folder() -> Path:
    """The folder that LONGTAKE_GOLDEN_DIR names, or one beside the project, or the project's copy
    of some golden vectors."""
    asked = os.environ.get("LONGTAKE_GOLDEN_DIR")
    if asked:
        return Path(asked)
    root = Path(__file__).parents[1]
    beside = root.parent / "shared" / "golden"
    return beside if beside.is_dir() else root / "tests" / "golden" / "vectors"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a `golden_file` runs on every one of the `systems` its module names."""
    if "golden_file" not in metafunc.fixturenames:
        return
    found = []
    for path in sorted(find_golden_folder().glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if json.loads(file.metadata()["system"]) in metafunc.module.SYSTEMS:
                found.append(path)
    if not found:
        raise FileNotFoundError(f"no golden vectors of {metafunc.module.SYSTEMS}")
    metafunc.parametrize("golden_file", found, ids=lambda path: path.stem)


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Where the golden vectors lie."""
    return find_golden_folder()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Wan pipeline of random weights in diffusers' layout: 32x32 pixels are 4 tokens."""
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    words = ["<pad>", "</s>", "<unk>", "a", "red", "green", "circle", "square", "moves"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    text = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    folder = tmp_path_factory.mktemp("tiny") / "tiny-wan"
    WanPipeline(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=UMT5EncoderModel(UMT5Config(vocab_size=len(words), dropout_rate=0.0, **text)),
        vae=AutoencoderKLWan(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.0, 0.8, 1.2, 1.5],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=WanTransformer3DModel(
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=24,
            freq_dim=32,
            ffn_dim=64,
        ),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Model:
    """The tiny pipeline, loaded in float32 on the CPU."""
    from longtake.runtime.model import ModelConfig, load_model

    config = ModelConfig(
        name="tiny",
        folder=tiny_folder,
        checkpoint=None,
        fps=16,
        height=32,
        width=32,
        block_frames=3,
        text_tokens=8,
    )
    return load_model(config, torch.device("cpu"), torch.float32)


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many KiB, in memory; skips the test where that is not allowed."""
    mounted: list[Path] = []

    def mount(kibibytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            done = False
        if not done:
            pytest.skip("mounting a small file system is not permitted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
