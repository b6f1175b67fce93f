"""Every layout gives the same transformer, and what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from longtake.runtime.weight_layouts import original_name
from longtake.runtime.weights import load_transformer
from longtake.scheduler.errors import UserError

CPU = torch.device("cpu")
TINY = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "ffn_dim": 48,
    "freq_dim": 32,
    "text_dim": 24,
}
ORIGINAL = {
    "_class_name": "WanModel",
    "model_type": "t2v",
    "text_len": 512,
    "num_layers": 2,
    "num_heads": 2,
    "dim": 32,
    "in_dim": 4,
    "out_dim": 4,
    "ffn_dim": 48,
    "freq_dim": 32,
    "text_dim": 24,
    "eps": 1e-6,
}


@pytest.fixture(scope="module")
def tiny() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(**TINY).eval()


@pytest.fixture(scope="module")
def original(tiny: WanTransformer3DModel) -> dict[str, Tensor]:
    """The tiny transformer's weights under their original names."""
    return {original_name(name): tensor for name, tensor in tiny.state_dict().items()}


@pytest.fixture
def folder(tiny: WanTransformer3DModel, tmp_path: Path) -> Path:
    """The tiny transformer as diffusers keeps it."""
    tiny.save_pretrained(tmp_path / "transformer")
    return tmp_path / "transformer"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(ORIGINAL))
    return tmp_path / "base"


def load(source: Path, base: Path | None = None) -> WanTransformer3DModel:
    return load_transformer(source, device=CPU, dtype=torch.float32, base=base)


def refusal(source: Path, base: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(source, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(loaded: WanTransformer3DModel, expected: WanTransformer3DModel) -> None:
    """Same configuration, weights and outputs: the outputs cover the rotary tables too."""
    assert dict(loaded.config).items() >= TINY.items()
    wanted = expected.state_dict()
    assert loaded.state_dict().keys() == wanted.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    latents, text = torch.randn(1, 4, 2, 4, 6), torch.randn(1, 5, 24)
    with torch.no_grad():
        outputs = [m(latents, torch.tensor([500]), text).sample for m in (loaded, expected)]
    assert torch.equal(*outputs)


def test_diffusers_folder(folder: Path, tiny: WanTransformer3DModel) -> None:
    loaded = load(folder)
    assert_same(loaded, tiny)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_sharded_diffusers_folder(tiny: WanTransformer3DModel, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(load(tmp_path), tiny)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_those_of_diffusers(dtype: torch.dtype, folder: Path) -> None:
    pytest.importorskip("accelerate", reason="diffusers keeps parts in float32 only with it")
    loaded = load_transformer(folder, device=CPU, dtype=dtype)
    expected = WanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype)
    tensors = [dict([*m.named_parameters(), *m.named_buffers()]) for m in (loaded, expected)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        assert tensor.dtype == tensors[1][name].dtype, name
        assert torch.equal(tensor, tensors[1][name]), name


def test_norms_tables_and_time_stay_in_float32(folder: Path) -> None:
    loaded = load_transformer(folder, device=CPU, dtype=torch.bfloat16)
    kept = {n for n, p in loaded.named_parameters() if p.dtype == torch.float32}
    assert {n for n in kept if n.startswith("blocks.1.")} == {
        "blocks.1.norm2.weight",
        "blocks.1.norm2.bias",
        "blocks.1.scale_shift_table",
    }
    assert "condition_embedder.time_embedder.linear_1.weight" in kept
    assert loaded.rope.freqs_cos.dtype == torch.float32
    assert loaded.dtype == torch.bfloat16


def test_original_folder(
    original: dict[str, Tensor], base: Path, tiny: WanTransformer3DModel
) -> None:
    names = sorted(original)
    shards = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: original[name] for name in part}, base / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (base / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load(base), tiny)


WRAPPED: dict[str, Callable[[str], str]] = {
    "bare": lambda name: name,
    "model": lambda name: f"model.{name}",
    "fsdp": lambda name: (
        "model._fsdp_wrapped_module."
        + name.replace("self_attn.", "_fsdp_wrapped_module.self_attn.")
    ),
}


@pytest.mark.parametrize("group", ["generator_ema", "generator", "model", "state_dict", None])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoint(
    suffix: str,
    wrap: Callable[[str], str],
    group: str | None,
    original: dict[str, Tensor],
    base: Path,
    tmp_path: Path,
    tiny: WanTransformer3DModel,
) -> None:
    state = {wrap(name): tensor for name, tensor in original.items()}
    file = tmp_path / f"checkpoint{suffix}"
    if suffix == ".pt":
        torch.save(
            {group: state, "step": 7, "critic": {"a": torch.ones(1)}} if group else state, file
        )
    else:
        save_file({f"{group}.{n}" if group else n: t for n, t in state.items()}, file)
    assert_same(load(file, base), tiny)
    assert_same(load(file, base / "config.json"), tiny)


def test_27_the_moving_average_comes_first(
    original: dict[str, Tensor], base: Path, tmp_path: Path, tiny: WanTransformer3DModel
) -> None:
    other = {f"model.{name}": torch.zeros_like(tensor) for name, tensor in original.items()}
    ours = {f"model.{name}": tensor for name, tensor in original.items()}
    file = tmp_path / "both.pt"
    torch.save({"critic": other, "generator": other, "generator_ema": ours}, file)
    assert_same(load(file, base), tiny)


def test_checkpoint_with_diffusers_names_and_base(
    tiny: WanTransformer3DModel, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tuned.safetensors"
    save_file(tiny.state_dict(), file)
    assert_same(load(file, folder), tiny)


def test_configuration_beside_the_checkpoint(
    original: dict[str, Tensor], base: Path, tiny: WanTransformer3DModel
) -> None:
    torch.save({"generator": original}, base / "model.pt")
    assert_same(load(base / "model.pt"), tiny)


def test_heads_cannot_be_told_from_a_strange_width(
    original: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"generator": original}, tmp_path / "model.pt")
    told = refusal(tmp_path / "model.pt")
    assert "number of heads" in told
    assert "width 32" in told
    assert "base" in told


def test_27_misfits_are_named(original: dict[str, Tensor], base: Path, tmp_path: Path) -> None:
    state = dict(original)
    del state["blocks.1.cross_attn.k.bias"], state["time_projection.1.weight"]
    state["blocks.0.norm1.weight"] = torch.ones(32)
    state["blocks.0.ffn.2.bias"] = torch.ones(31)
    state["head.head.bias"] = torch.ones(16, dtype=torch.int8)
    torch.save({"generator": state}, tmp_path / "model.pt")
    told = refusal(tmp_path / "model.pt", base)
    assert "2 missing: blocks.1.cross_attn.k.bias, time_projection.1.weight" in told
    assert "1 unexpected: blocks.0.norm1.weight" in told
    assert "blocks.0.ffn.2.bias is [31], not [32]" in told
    assert "quantised weights are: head.head.bias" in told


def test_many_misfits_are_counted(original: dict[str, Tensor], base: Path, tmp_path: Path) -> None:
    state = {n: t for n, t in original.items() if not n.startswith("blocks.1.")}
    absent = len(original) - len(state)
    torch.save(state, tmp_path / "model.pt")
    told = refusal(tmp_path / "model.pt", base)
    assert f"{absent} missing: " in told
    assert f" and {absent - 8} more" in told


def test_27_a_lora_is_not_a_transformer(base: Path, tmp_path: Path) -> None:
    lora = {"base_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 32)}
    torch.save({"generator_lora": lora}, tmp_path / "lora.pt")
    assert "lora_A" in refusal(tmp_path / "lora.pt", base)


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
        ({"inject_sample_info": True, "quantization_config": {}}, "inject_sample_info"),
        ({"num_layers": "two"}, "makes no model"),
        ({"num_layers": 3}, "missing: blocks.2."),
        ({"ffn_dim": 64}, "not [64]"),
    ],
)
def test_wrong_diffusers_config(changes: dict[str, object], named: str, folder: Path) -> None:
    edit_config(folder, **changes)
    assert named in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"_class_name": "HunyuanVideo"}, "HunyuanVideo"),
        ({"moe_experts": 4}, "moe_experts"),
        ({"model_type": "i2v"}, "'i2v'"),
        ({"qk_norm": False}, "qk_norm is False"),
        ({"num_heads": 5}, "num_heads 5"),
    ],
)
def test_wrong_original_config(
    changes: dict[str, object], named: str, original: dict[str, Tensor], base: Path
) -> None:
    save_file(original, base / "model.safetensors")
    edit_config(base, **changes)
    assert named in refusal(base)
