"""Overlapping windows: one is joint generation; of several the flows are averaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.distributed.walks import (
    TOLERANCE,
    Walk,
    alone_made,
    check_on_workers,
    check_resume,
    distance,
    encode,
    transformer,
)

from longtake.runtime.launch_worker import Moving, mixed
from longtake.runtime.noise import SeededNoise
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue
from longtake.scheduler.schedule import Schedule, Verdict
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.windows import Windows
from longtake.scheduler.task import Kind, Span, Task
from longtake.scheduler.traffic import Traffic

WINDOWS = Walk(Windows(4, 3), cues=(0, 5), sampler="unipc")


def launches(walk: Walk) -> list[Task]:
    return [task for task in walk.schedule() if task.kind is Kind.DENOISE]


def test_one_window_is_joint_generation_to_the_bit() -> None:
    one = Walk(Windows(12, 6), guidance=3.0)
    assert torch.equal(alone_made(one), alone_made(Walk(Bidirectional(), guidance=3.0)))


@pytest.mark.parametrize(
    ("length", "stride", "starts"),
    [
        (4, 3, [0, 3, 6]),
        (4, 2, [0, 2, 4, 6]),
        (4, 4, [0, 4, 6]),  # the last is moved back
        (5, 4, [0, 4, 5]),
        (7, 1, [0, 1, 2, 3]),
        (10, 5, [0]),
    ],
)
def test_windows_cover_the_video_and_the_last_ends_with_it(
    length: int, stride: int, starts: list[int]
) -> None:
    for task in launches(Walk(Windows(length, stride))):
        assert [part.frames for part in task.parts] == [Span(s, s + length) for s in starts]
        assert all(part.at == 0 and not part.sees for part in task.parts)
    assert Windows(4, 3).seams(10) == [3, 4, 6, 7]


def test_a_frame_moves_by_the_mean_of_the_flows_of_its_windows() -> None:
    (launch, *_) = launches(WINDOWS)
    latents = torch.zeros(1, 4, 10, 6, 10)
    flows = [torch.randn(1, 4, 4, 6, 10) for _ in launch.parts]
    pieces = list(zip(launch.parts, flows, strict=True))
    mean = mixed(pieces, Moving(0, latents, None))  # type: ignore[arg-type]  # nothing moves here
    for frame in range(10):
        having = [(p.frames, flow) for p, flow in pieces if frame in p.frames.frames()]
        here = [flow[:, :, frame - frames.start] for frames, flow in having]
        assert len(here) == (2 if frame in (3, 6) else 1)
        torch.testing.assert_close(mean[:, :, frame], torch.stack(here).mean(0))


def test_a_window_is_evaluated_as_a_video_of_its_own() -> None:
    """One Euler-like step of the sampler: what it makes of the mean of plain forwards."""
    walk = Walk(Windows(4, 3), steps=1)
    module, noise = transformer().module, SeededNoise(3).initial(0, (1, 4, 10, 6, 10))
    text = encode(walk.schedule().request.cues[0].text)
    total, count = torch.zeros_like(noise), torch.zeros(10)
    for start in (0, 3, 6):
        own = slice(start, start + 4)
        with torch.inference_mode():
            flow = module(noise[:, :, own], torch.tensor([1000.0]), text, return_dict=False)[0]
        total[:, :, own] += flow
        count[own] += 1
    clean = noise - total / count.view(-1, 1, 1)
    assert distance(alone_made(walk), clean) < TOLERANCE


@pytest.mark.parametrize(
    "degrees",
    [Degrees(clip=2), Degrees(clip=3), Degrees(clip=2, ulysses=2), Degrees(clip=2, stages=2)],
    ids=Degrees.describe,
)
def test_workers_make_what_one_process_makes(workers: Any, degrees: Degrees) -> None:
    check_on_workers(workers, WINDOWS, degrees)


def test_no_keys_travel() -> None:
    traffic = Traffic.of(launches(WINDOWS)[0].parts, 3)
    assert not any(traffic.frames(a, b) for a in range(3) for b in range(3))


@pytest.mark.parametrize("breaks_after", [1, 2, 3])
def test_killed_run_goes_on_to_the_same_bits(breaks_after: int) -> None:
    """State, state, then the block and the last state."""
    check_resume(WINDOWS, breaks_after, state_every=0.0)


def test_a_window_is_under_the_prompt_of_its_middle() -> None:
    """Windows begin at 0, 3 and 6; the second prompt at 5, which is the middle of the second."""
    tasks = list(WINDOWS.schedule())
    assert [part.cue for task in tasks for part in task.parts[:3]] == [0, 1, 1] * 3
    assert [task.cue for task in tasks if task.kind is Kind.ENCODE] == [0, 1]
    later = replace(WINDOWS, cues=(0, 6))
    assert [part.cue for part in launches(later)[0].parts] == [0, 0, 1]
    assert distance(alone_made(WINDOWS), alone_made(later)) > 50 * TOLERANCE


def test_prompt_changed_by_hand_holds_until_the_next_planned_one() -> None:
    schedule = WINDOWS.schedule()
    schedule.switch("another")
    parts = next(task for task in schedule if task.parts).parts
    assert [part.cue for part in parts] == [2, 1, 1]


def test_the_block_takes_its_steps_once() -> None:
    tasks = list(WINDOWS.schedule())
    kinds = [task.kind for task in tasks]
    assert kinds == [*[Kind.ENCODE] * 2, *[Kind.DENOISE] * 3, Kind.DECODE]
    assert [task.finishes for task in tasks if task.parts] == [(), (), (0,)]
    assert list(WINDOWS.schedule().tasks(lambda block: Verdict(go=False))) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": None}, r"^windows make all of a video at once, so they need --seconds$"),
        ({"height": 60}, r"^size 80x60 can't be tiled"),
        (
            {"cues": (Cue(0, "a"), Cue(34 / 16, "b"))},
            r"^the prompt at 2.125 s would never be seen: prompts change where a window's middle "
            r"begins, at 0, 1.0625, 1.8125 s, and none is left to it$",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(change: dict[str, Any], message: str) -> None:
    schedule = WINDOWS.schedule()
    with pytest.raises(UserError, match=message):
        Schedule(schedule.strategy, replace(schedule.request, **change), schedule.spec, 3)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="a window has at least 1 latent frame, got 0"):
        Windows(0, 1)
    for stride in (0, 5):
        with pytest.raises(UserError, match=rf"the stride of windows must be 1 \.\. 4.*{stride}$"):
            Windows(4, stride)
