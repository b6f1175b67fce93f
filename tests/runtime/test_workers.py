"""The denoising lane: restored blocks, interleaved requests, guidance, and very long videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import pytest
import torch

from longtake.runtime.model import Model
from longtake.runtime.samplers import FewStep
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Edge, Kind, Payload

MakeLane = Callable[..., Any]
LONGLIVE = Retention(9, 3, Positions.RELATIVE)


@pytest.fixture
def schedule(tiny_model: Model) -> Callable[..., Schedule]:
    """Make schedules of the tiny model: causal, unless a strategy is given."""

    def make(seconds: float = 3.0, strategy: Any = None, **changes: Any) -> Schedule:
        cues = changes.pop("cues", (Cue(0, "first"),))
        request = Request(cues, seconds, 32, 32, 16, **changes)
        return Schedule(strategy or Causal(LONGLIVE), request, tiny_model.spec, steps=2)

    return make


@pytest.mark.parametrize("kept", [1, 3, 5])
def test_restored_blocks_are_committed_but_not_denoised(
    make_lane: MakeLane, schedule: Callable[..., Schedule], kept: int
) -> None:
    """The second prompt falls into the restored part or behind it; the rest is the same bits."""
    cues = (Cue(0, "first"), Cue(1.3125, "second"))
    whole = make_lane(schedule(cues=cues))
    blocks = whole.walk().made
    assert len(blocks) == 5
    assert whole.worker.evaluations == 5 * (2 + 1) + 1

    resumed = make_lane(schedule(cues=cues))
    resumed.store.held = {block: blocks[block] for block in range(kept)}
    again = resumed.walk().made
    assert resumed.worker.evaluations == kept + (5 - kept) * (2 + 1) + 1
    assert sorted(again) == list(range(kept, 5))
    assert all(torch.equal(again[block], blocks[block]) for block in again)


def test_restored_blocks_are_handed_on(
    make_lane: MakeLane, schedule: Callable[..., Schedule]
) -> None:
    lane = make_lane(schedule())
    lane.store.held = {0: torch.full((1, 4, 3, 4, 4), 0.25)}
    lane.walk()
    assert torch.equal(lane.worker.take(0), lane.store.held[0])
    assert torch.equal(lane.worker.take(4), lane.store.made[4])


@pytest.mark.parametrize("strategy", [Causal(LONGLIVE), Bidirectional()], ids=["causal", "joint"])
def test_interleaved_requests_equal_the_two_alone(
    make_lane: MakeLane, schedule: Callable[..., Schedule], strategy: Any
) -> None:
    def lanes() -> tuple[Any, Any]:
        return (
            make_lane(schedule(3.0, strategy, seed=1)),
            make_lane(schedule(2.0, strategy, seed=2, guidance=4.0)),
        )

    alone = [lane.walk().latents for lane in lanes()]
    together = lanes()
    for tasks in zip_longest(*(lane.schedule for lane in together)):
        for lane, task in zip(together, tasks, strict=True):
            if task is not None:
                lane.run(task)
    for lane, expected in zip(together, alone, strict=True):
        assert torch.equal(lane.store.latents, expected)


def test_each_prompt_meets_the_text_layers_once(
    tiny_model: Model, make_lane: MakeLane, schedule: Callable[..., Schedule]
) -> None:
    """However many blocks and steps it holds for."""
    calls: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in tiny_model.transformer.module.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v"))
    ]
    make_lane(schedule(cues=(Cue(0, "first"), Cue(1.3125, "second")))).walk()
    for hook in hooks:
        hook.remove()
    assert len(calls) == 2 * 2
    assert set(calls.values()) == {2}


def test_guidance_moves_away_from_the_negative_prompt(
    make_lane: MakeLane, schedule: Callable[..., Schedule]
) -> None:
    """flow = without + scale * (with - without), so one step is linear in the scale."""
    one_step = FewStep((1000.0,), 5.0)
    made = {}
    for scale in (1.0, 2.0, 5.0):
        run = schedule(0.5, Bidirectional(), guidance=scale)
        run.steps = 1
        made[scale] = make_lane(run, sampler=one_step).walk().latents
    slope = made[2.0] - made[1.0]
    assert slope.abs().max() > 1e-4
    torch.testing.assert_close(made[5.0], made[1.0] + 4 * slope, atol=1e-5, rtol=0)


def test_the_past_kept_for_recaching_does_not_grow(
    make_lane: MakeLane, schedule: Callable[..., Schedule]
) -> None:
    lane = make_lane(schedule(10.0))
    lane.walk()
    assert len(lane.worker._past) == 9


def test_a_video_may_be_longer_than_the_rotary_table(
    tiny_model: Model, make_lane: MakeLane
) -> None:
    """1110 latent frames, 4437 of pixels: both ways to count reach any length, and agree."""
    spec = replace(tiny_model.spec, block_frames=10)
    request = Request((Cue(0, "first"),), 4437 / 16, 16, 16, 16)
    made = {}
    for positions in (Positions.RELATIVE, Positions.SINK_REBASED):
        retention = Retention(window=24, sink=4, positions=positions)
        run = Schedule(Causal(retention), request, spec, steps=1)
        made[positions] = make_lane(run, sampler=FewStep((1000.0,), 5.0)).walk().latents
    relative, rebased = made.values()
    assert relative.shape == (1, 4, 1110, 2, 2)
    assert relative.isfinite().all()
    torch.testing.assert_close(rebased, relative, atol=1e-4, rtol=0)


def test_edges_and_tasks_of_another_lane_are_errors(
    make_lane: MakeLane, schedule: Callable[..., Schedule]
) -> None:
    lane = make_lane(schedule())
    decode = next(task for task in lane.schedule if task.kind is Kind.DECODE)
    with pytest.raises(ValueError, match="takes no latent"):
        lane.worker.expect(Edge(Payload.LATENT, 0, "decode", "denoise"), decode)
    with pytest.raises(ValueError, match="does not decode"):
        lane.worker.run(decode)
