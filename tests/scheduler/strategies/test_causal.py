"""Block by block: LongLive's re-cache as its own code does it, and what is refused."""

from __future__ import annotations

import pytest

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind, Span, Task

SPEC = ModelSpec(
    layers=2,
    heads=2,
    head_dim=16,
    ffn_dim=64,
    latent_channels=4,
    patch=2,
    rotary_rows=1024,
    block_frames=3,
)


def schedule(switch_before: int, keep_sink: bool = True) -> list[Task]:
    at = SPEC.pixel_frames(switch_before * 3) / 16
    request = Request((Cue(0, "first"), Cue(at, "second")), 10, 64, 64, 16)
    causal = Causal(Retention(12, 3, keep_sink=keep_sink))
    return list(Schedule(causal, request, SPEC, steps=4))


@pytest.mark.parametrize(
    ("switch_before", "keep_sink", "left", "again"),
    [
        (1, True, (), Span(0, 3)),
        (4, True, (), Span(0, 12)),  # the window is just full: its sink is rewritten too
        (5, True, (Span(0, 3),), Span(6, 15)),
        (5, False, (), Span(3, 15)),
        (7, False, (), Span(9, 21)),
    ],
)
def test_a_switch_recaches_once_before_its_block(
    switch_before: int, keep_sink: bool, left: tuple[Span, ...], again: Span
) -> None:
    tasks = schedule(switch_before, keep_sink)
    recaches = [index for index, task in enumerate(tasks) if task.kind is Kind.RECACHE]
    assert len(recaches) == 1
    task = tasks[recaches[0]]
    assert (task.block, task.cue) == (switch_before, 1)
    assert (task.context, task.frames) == (left, again)
    around = tasks[recaches[0] - 1 : recaches[0] + 2]
    assert [t.kind for t in around] == [Kind.ENCODE, Kind.RECACHE, Kind.DENOISE]


def test_without_a_kept_sink_the_new_prompt_has_its_own() -> None:
    contexts = {t.block: t.context for t in schedule(5, keep_sink=False) if t.kind is Kind.COMMIT}
    assert contexts[5] == (Span(3, 6), Span(9, 15))
    assert contexts[9] == (Span(3, 6), Span(21, 27))


def test_it_makes_as_many_blocks_as_the_video_takes() -> None:
    for frames, blocks in [(1, 1), (9, 1), (10, 2), (81, 7), (82, 8)]:
        request = Request((Cue(0, "first"),), frames / 16, 64, 64, 16)
        assert Schedule(Causal(Retention()), request, SPEC, 1).blocks == blocks


@pytest.mark.parametrize("positions", Positions)
def test_minutes_need_positions_that_do_not_grow(positions: Positions) -> None:
    """341 blocks of 3 are the 1023 latent frames that a table of 1024 rows holds."""
    causal = Causal(Retention(12, 3, positions))
    for frames in (SPEC.pixel_frames(1023), SPEC.pixel_frames(1023) + 1):
        request = Request((Cue(0, "first"),), frames / 16, 64, 64, 16)
        if frames == SPEC.pixel_frames(1023) or positions is not Positions.ABSOLUTE:
            assert Schedule(causal, request, SPEC, 1).blocks == -(-SPEC.latent_frames(frames) // 3)
        else:
            with pytest.raises(UserError, match=r"^1026 latent frames can't be placed at absolute"):
                Schedule(causal, request, SPEC, 1)


def test_sizes_are_checked() -> None:
    request = Request((Cue(0, "first"),), 5, 64, 70, 16)
    with pytest.raises(UserError, match=r"^size 70x64 can't be tiled"):
        Schedule(Causal(Retention()), request, SPEC, 1)
