"""The adapter against diffusers' own forward, and what a runtime must be able to take apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longtake.kernels.rotary import rotary_table
from longtake.parallel.mesh import alone
from longtake.parallel.sequence import SequenceParallel
from longtake.runtime.contexts import JointAttention
from longtake.runtime.model import Model
from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind

CPU = torch.device("cpu")
FRAMES = 4


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.no_grad():  # in inference mode a dispatch mode does not see every operation
        yield


@pytest.fixture
def transformer(tiny_model: Model) -> WanTransformer:
    return tiny_model.transformer


ONE_WORKER = SequenceParallel(alone(CPU), 6)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents(frames: int = FRAMES, seed: int = 0) -> Tensor:
    return random(1, 4, frames, 4, 6, seed=seed)


def prompt(seed: int = 0) -> Tensor:
    return random(1, 8, 24, seed=100 + seed)


def joint(frames: int = FRAMES) -> JointAttention:
    return JointAttention(ONE_WORKER, frames, rotary_table(range(frames), 2, 3, 16, CPU))


def forward(transformer: WanTransformer, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    hidden = transformer.embed(x, t)
    keys = transformer.text_keys(text)
    return transformer.head(transformer.layers(hidden, 0, 2, joint(x.shape[2]), keys))


def test_equals_diffusers_with_one_noise_level(transformer: WanTransformer) -> None:
    t = torch.tensor([[731.0], [12.5]])
    x = torch.cat([latents(), latents(seed=1)])
    text = torch.cat([prompt(), prompt(1)])
    expected = transformer.module(x, t[:, 0], text).sample
    torch.testing.assert_close(forward(transformer, x, t, text), expected, atol=1e-5, rtol=0)


def test_equals_diffusers_with_a_level_for_each_frame(transformer: WanTransformer) -> None:
    t = torch.tensor([[1000.0, 640.0, 20.0, 0.0]])
    each_token = t.repeat_interleave(6, dim=1)
    expected = transformer.module(latents(), each_token, prompt()).sample
    made = forward(transformer, latents(), t, prompt())
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


@dataclass(frozen=True)
class FrameByFrame:
    """Every frame sees itself alone."""

    table: Tensor

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.reshape(-1, 6, *x.shape[2:]) for x in (q, k, v))
        return (
            JointAttention(ONE_WORKER, 1, self.table).attend(layer, q, k, v).reshape(1, -1, 2, 16)
        )


def test_13_mixed_levels_equal_separate_forwards(transformer: WanTransformer) -> None:
    """Where attention is separated, nothing else lets frames of different levels meet."""
    t = torch.tensor([[1000.0, 640.0, 20.0, 0.0]])
    apart = FrameByFrame(rotary_table([0], 2, 3, 16, CPU))
    keys = transformer.text_keys(prompt())

    def evaluate(x: Tensor, level: Tensor) -> Tensor:
        return transformer.head(transformer.layers(transformer.embed(x, level), 0, 2, apart, keys))

    together = evaluate(latents(), t)
    apart = [evaluate(latents()[:, :, f : f + 1], t[:, f : f + 1]) for f in range(FRAMES)]
    torch.testing.assert_close(together, torch.cat(apart, dim=2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_any_run_of_layers_can_be_evaluated_alone(transformer: WanTransformer, cut: int) -> None:
    keys = transformer.text_keys(prompt())
    hidden = transformer.embed(latents(), torch.tensor([[500.0]]))
    whole = transformer.layers(hidden, 0, 2, joint(), keys)
    first = transformer.layers(hidden, 0, cut, joint(), keys)
    assert torch.equal(transformer.layers(first, cut, 2, joint(), keys).tokens, whole.tokens)
    assert torch.equal(first.tokens, hidden.tokens) == (cut == 0)


def test_14_text_keys_are_computed_once_for_each_prompt(transformer: WanTransformer) -> None:
    calls: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in transformer.module.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v", "text_embedder"))
    ]
    hidden = transformer.embed(latents(), torch.tensor([[500.0]]))
    for seed in (0, 1):
        keys = transformer.text_keys(prompt(seed))
        for _ in range(3):
            transformer.layers(hidden, 0, 2, joint(), keys)
    for hook in hooks:
        hook.remove()
    assert len(calls) == 2 * 2 + 1
    assert set(calls.values()) == {2}


def test_14_two_prompts_never_mix(transformer: WanTransformer) -> None:
    hidden = transformer.embed(latents(), torch.tensor([[500.0]]))

    def evaluate(keys: Any) -> Tensor:
        return transformer.layers(hidden, 0, 2, joint(), keys).tokens

    alone = [evaluate(transformer.text_keys(prompt(seed))) for seed in (0, 1)]
    both = [transformer.text_keys(prompt(seed)) for seed in (0, 1)]
    for _ in range(2):
        assert [torch.equal(evaluate(keys), alone[i]) for i, keys in enumerate(both)] == [True] * 2
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_low_precision_stays_near(transformer: WanTransformer) -> None:
    t = torch.tensor([[500.0]])
    exact = forward(transformer, latents(), t, prompt())
    module = WanTransformer3DModel.from_config(transformer.module.config)
    module.load_state_dict(transformer.module.state_dict())
    for name, parameter in module.named_parameters():
        if not any(part in name for part in module._keep_in_fp32_modules):
            parameter.data = parameter.data.bfloat16()
    low = WanTransformer(module)
    assert low.dtype == torch.bfloat16
    hidden = low.layers(low.embed(latents(), t), 0, 2, joint(), low.text_keys(prompt()))
    assert (hidden.tokens.dtype, hidden.modulation.dtype) == (torch.bfloat16, torch.float32)
    made = low.head(hidden)
    assert made.dtype == torch.bfloat16
    assert (made - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_dim": 8}, "^this is an image-to-video Wan; only text-to-video"),
        ({"added_kv_proj_dim": 32}, "^this is an image-to-video Wan; only text-to-video"),
        ({"patch_size": (2, 2, 2)}, "^a Wan transformer must have a temporal patch of 1$"),
    ],
)
def test_other_models_are_refused(changes: dict[str, Any], message: str) -> None:
    small = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 8}
    with pytest.raises(UserError, match=message):
        WanTransformer(WanTransformer3DModel(**small | changes))


class Waits(TorchDispatchMode):
    """Counts operations in which the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal"):
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("positions", Positions)
def test_28_layers_never_wait_for_the_device(
    tiny_model: Model, make_lane: Callable[..., Any], positions: Positions
) -> None:
    """In a block whose window is full; its slots are settled before the first layer."""
    request = Request((Cue(0, "x"),), 2.5, 32, 32, 16)
    schedule = Schedule(Causal(Retention(9, 3, positions)), request, tiny_model.spec, 2)
    lane, transformer, waits = make_lane(schedule), tiny_model.transformer, Waits()
    evaluated = 0
    for task in schedule:
        lane.run(task)
        if task.block == 3 and task.kind in (Kind.DENOISE, Kind.COMMIT):
            context = lane.window.attention(task.frames, task.context)
            hidden = transformer.embed(random(1, 4, 3, 4, 4), torch.tensor([[500.0]]))
            keys = transformer.text_keys(prompt())
            with waits:
                transformer.layers(hidden, 0, 2, context, keys)
            evaluated += 1
    assert evaluated == 3
    assert waits.counts == {}


def test_waiting_would_be_counted() -> None:
    with Waits() as waits:
        x = torch.ones(3)
        assert x[0].item() == 1
        assert len(x.nonzero()) == 3
        assert torch.equal(x, x)
    assert waits.counts == {"_local_scalar_dense": 1, "nonzero": 1, "equal": 1}
