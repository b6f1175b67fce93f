"""Clips: one that sees all is joint generation; on workers they are as in one process."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.distributed.walks import (
    TOLERANCE,
    Blocks,
    Broken,
    Walk,
    alone_made,
    check_on_workers,
    check_resume,
    distance,
    encode,
    take,
    transformer,
)
from torch import Tensor

from longtake.runtime.noise import SeededNoise
from longtake.runtime.prompts import Prompts
from longtake.scheduler.degrees import Degrees, shares
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue
from longtake.scheduler.schedule import Schedule, Verdict
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.clip import Clip, Scopes
from longtake.scheduler.task import Kind, Span, Task
from longtake.scheduler.traffic import Traffic

FRAMES = 10
SCOPES = Scopes(halo=2, global_frames=3, bias=2.0, switch=0.5)
CUES = (0, 4)


class OneNoise(SeededNoise):
    """The noise of one block, cut up for the clips of a video."""

    def __init__(self, clips: int) -> None:
        super().__init__(3)
        self.clips = shares(FRAMES, clips)

    def initial(self, block: int, shape: tuple[int, ...]) -> Tensor:
        clip = self.clips[block]
        whole = super().initial(0, (*shape[:2], FRAMES, *shape[3:]))
        return whole[:, :, clip.start : clip.stop]


def made_of(clips: int, scopes: Scopes, **changes: Any) -> Tensor:
    """So many clips, which start from the noise that one would start from."""
    walk = Walk(Clip(scopes, None, clips), sampler="unipc", **changes)
    return take(walk, noise=OneNoise(clips)).latents


def launches(walk: Walk) -> list[Task]:
    return [task for task in walk.schedule() if task.kind is Kind.DENOISE]


def test_clip_01_one_clip_that_sees_all_is_joint_generation_to_the_bit() -> None:
    one = Walk(Clip(Scopes(None, 0), None, 1), guidance=3.0)
    assert torch.equal(alone_made(one), alone_made(Walk(Bidirectional(), guidance=3.0)))


@pytest.mark.parametrize("clips", [1, 3])
@pytest.mark.parametrize(
    "scopes",
    [Scopes(None, 0), Scopes(None, 3, 0.0), Scopes(FRAMES, FRAMES, 5.0), Scopes(0, FRAMES, 0.0)],
    ids=["halo", "both", "each", "global"],
)
def test_clip_04_clips_that_see_all_are_joint_generation(clips: int, scopes: Scopes) -> None:
    """However it comes about that every frame is seen, it is seen once."""
    joint = take(Walk(Bidirectional(), sampler="unipc"), noise=OneNoise(1)).latents
    assert distance(made_of(clips, scopes), joint) < TOLERANCE


def test_clip_06_07_the_number_of_clips_has_no_say() -> None:
    """Neither in the global frames nor, where they start from one noise, in what is made."""
    one = made_of(1, SCOPES)
    for clips in (2, 4, FRAMES):
        assert distance(made_of(clips, SCOPES), one) < TOLERANCE
    assert distance(made_of(2, replace(SCOPES, halo=1)), one) > 50 * TOLERANCE
    assert distance(made_of(2, replace(SCOPES, global_frames=2)), one) > 50 * TOLERANCE
    assert distance(made_of(2, replace(SCOPES, switch=0.0)), one) > 50 * TOLERANCE


@pytest.mark.parametrize(
    "degrees",
    [
        Degrees(clip=2),
        Degrees(clip=3),
        Degrees(clip=4),
        Degrees(clip=2, ring=2),
        Degrees(clip=2, stages=2),
        Degrees(cfg=2, clip=2),
    ],
    ids=Degrees.describe,
)
def test_clip_07_08_workers_make_what_one_process_makes(workers: Any, degrees: Degrees) -> None:
    guidance = 3.0 if degrees.cfg > 1 or degrees.stages > 1 else 1.0
    walk = Walk(Clip(SCOPES, None, 4), cues=CUES, guidance=guidance)
    check_on_workers(workers, walk, degrees)


@given(st.data())
def test_clip_04_05_every_frame_sees_its_two_scopes(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 40), label="frames")
    clips = shares(total, data.draw(st.integers(1, total), label="clips"))
    halo = data.draw(st.none() | st.integers(0, 12), label="halo")
    scopes = Scopes(
        halo,
        data.draw(st.integers(0, 50), label="global frames"),
        data.draw(st.sampled_from([0.0, 4.0]), label="bias"),
        repeats=data.draw(st.booleans(), label="repeats"),
    )
    early = data.draw(st.booleans(), label="early")
    sample = scopes.sample(total)
    assert len(set(sample)) == min(scopes.global_frames, total) and sample == sorted(sample)
    bias = scopes.bias if sample else 0.0
    for own in clips:
        around = scopes.around(own, total)
        for frame in own.frames():
            found = Counter(
                (seen_frame, seen.bias)
                for seen in scopes.sees(own, clips, early, rows=1024)
                for span in seen.seen_by(frame)
                for seen_frame in span.frames()
                if seen.at + seen_frame - seen.frames.start == seen_frame - around.start
            )
            near = [f for f in range(total) if halo is None or abs(f - frame) <= halo]
            local = {f: 0.0 if early else bias for f in near}
            globally = {f: bias if early else 0.0 for f in sample}
            true = Counter([*local.items(), *globally.items()])
            if not scopes.repeats:
                either = local.keys() | globally.keys()
                lowest = -1.0
                true = Counter(
                    (f, max(local.get(f, lowest), globally.get(f, lowest))) for f in either
                )
            assert found == true


def test_10_frames_stand_no_further_apart_than_the_model_has_positions_for() -> None:
    schedule = Walk(Clip(Scopes(8, 16), 12), frames=1500).schedule()
    rows = schedule.spec.rotary_rows
    for part in next(task for task in schedule if task.parts).parts:
        keys = [look.at + i for look in part.sees for i in range(len(look.frames))]
        queries = part.at, part.at + len(part.frames) - 1
        apart = max(max(keys) - queries[0], queries[1] - min(keys))
        assert apart < rows
        near = [look for look in part.sees if abs(look.frames.start - part.frames.start) < 900]
        assert all(look.at - part.at == look.frames.start - part.frames.start for look in near)
    with pytest.raises(UserError, match=r"over 1500 positions around them, .* has 1024 rows"):
        Walk(Clip(Scopes(None, 0), 12), frames=1500).schedule()


@pytest.mark.parametrize("clip", [10, 20])
def test_clip_10_traffic_is_two_halos_a_boundary_and_the_global_frames(clip: int) -> None:
    """None of the three global frames is the first or the last of a clip here."""
    walk = Walk(Clip(Scopes(halo=2, global_frames=3), clip), frames=4 * clip)
    for launch in launches(walk):
        for workers in (1, 2, 4):
            traffic = Traffic.of(launch.parts, workers)
            pairs = [(a, b) for a in range(workers) for b in range(workers) if a != b]
            sent = sum(traffic.frames(*pair) for pair in pairs)
            assert sent == (workers - 1) * (2 * 2 + 3)


@pytest.mark.parametrize("clips", [1, 3, 4, FRAMES])
def test_17_every_clip_takes_its_steps_once_and_they_come_in_order(clips: int) -> None:
    tasks = list(Walk(Clip(SCOPES, None, clips), cues=CUES if clips > 1 else (0,)).schedule())
    made = [task for task in tasks if task.kind is Kind.DENOISE]
    cut = shares(FRAMES, clips)
    for step, task in enumerate(made):
        assert [(part.step, part.last) for part in task.parts] == [(step, step == 2)] * clips
        assert [part.frames for part in task.parts] == cut
    assert len(made) == 3 and made[-1].drops == tuple(range(clips))
    assert [task.frames for task in tasks if task.kind is Kind.DECODE] == cut
    assert [task.tick for task in tasks] == list(range(len(tasks)))
    assert Clip(SCOPES, None, clips).seams(FRAMES) == [clip.start for clip in cut[1:]]


@pytest.mark.parametrize("breaks_after", [1, 2, 3, 5])
def test_killed_run_goes_on_to_the_same_bits(breaks_after: int) -> None:
    """State, state, then three blocks and the last state."""
    walk = Walk(Clip(SCOPES, None, 3), cues=CUES, sampler="unipc")
    check_resume(walk, breaks_after, state_every=0.0)


@pytest.mark.parametrize(
    ("switch", "steps", "early"),
    [(0.2, 30, 6), (0.2, 4, 1), (0.2, 2, 0), (0.5, 3, 2), (0.0, 4, 0), (1.0, 4, 4)],
)
def test_clip_09_the_global_frames_are_raised_in_the_first_steps_only(
    switch: float, steps: int, early: int
) -> None:
    """The work's own: six of thirty steps are at a timestep of 800 or more."""
    walk = Walk(Clip(replace(SCOPES, switch=switch), None, 2), steps=steps)
    raised = [
        {look.by_distance for look in task.parts[0].sees if look.bias} == {False}
        for task in launches(walk)
    ]
    assert raised == [True] * early + [False] * (steps - early)


def test_state_is_kept_while_no_block_is_done_if_that_takes_long() -> None:
    walk = Walk(Clip(SCOPES, None, 3), sampler="unipc")
    kept, blocks = Blocks(breaks_after=2), Blocks(breaks_after=0)
    with pytest.raises(Broken):
        take(walk, blocks=kept, state_every=0.0)
    assert kept.state is not None and kept.state[0] == launches(walk)[1].tick and not kept.made
    with pytest.raises(Broken):
        take(walk, blocks=blocks, state_every=1e9)
    assert blocks.state is None


def test_29_clips_that_began_are_finished_when_the_video_is_stopped() -> None:
    walk = Walk(Clip(SCOPES, None, 4))
    tasks = list(walk.schedule().tasks(lambda block: Verdict(go=block < 2)))
    assert [task.frames for task in tasks if task.kind is Kind.DECODE] == [Span(0, 3), Span(3, 6)]
    seen = [seen for task in tasks for part in task.parts for seen in part.sees]
    assert max(each.frames.stop for each in seen) == 6
    assert list(walk.schedule().tasks(lambda block: Verdict(go=False))) == []


def test_prompts_change_where_clips_begin() -> None:
    walk = Walk(Clip(SCOPES, None, 4), cues=(0, 4))  # clips begin at 0, 3, 6, 8
    assert [part.cue for part in launches(walk)[0].parts] == [0, 0, 1, 1]
    encoded = [(t.block, t.cue) for t in walk.schedule() if t.kind is Kind.ENCODE]
    assert encoded == [(0, 0), (2, 1)]
    assert distance(alone_made(walk), alone_made(replace(walk, cues=(0,)))) > 50 * TOLERANCE


def test_prompts_are_mixed_in_the_clips_after_a_change() -> None:
    walk = Walk(Clip(SCOPES, None, 5, blend=2), cues=(0, 2))  # clips begin at 0, 2, 4, 6, 8
    mixtures = [(part.cue, part.blend) for part in launches(walk)[0].parts]
    assert mixtures == [(0, None), (0, (1, 1 / 3)), (0, (1, 2 / 3)), (1, None), (1, None)]
    hard = alone_made(replace(walk, strategy=Clip(SCOPES, None, 5)))
    assert distance(alone_made(walk), hard) > 50 * TOLERANCE


def test_a_prompt_reaches_other_clips_through_what_they_see_alone() -> None:
    """TALC: text is by range of frames, self-attention over all of them, or none here."""
    for halo, apart in ((0, True), (None, False)):
        walk = Walk(Clip(Scopes(halo, 0), None, 2), cues=(0, 5))
        one, two = alone_made(walk)[:, :, :5], alone_made(replace(walk, cues=(0,)))[:, :, :5]
        assert torch.equal(one, two) == apart


def test_a_mixture_lies_between_its_prompts() -> None:
    prompts = Prompts(transformer())
    texts = [encode("x" * length) for length in (1, 2)]
    for cue, text in enumerate(texts):
        prompts.add(cue, text)
    part = launches(Walk(Clip(SCOPES)))[0].parts[0]
    mixed = prompts.of(replace(part, cue=0, blend=(1, 0.25)))
    true = transformer().text_keys(0.75 * texts[0] + 0.25 * texts[1])
    torch.testing.assert_close(mixed.layer(1), true.layer(1))
    prompts.forget([1])
    with pytest.raises(KeyError):
        prompts.of(replace(part, cue=0))
    assert prompts.of(replace(part, cue=1)) is prompts.of(replace(part, cue=1))


def test_prompt_changed_by_hand_holds_until_the_next_planned_one() -> None:
    schedule = Walk(Clip(SCOPES, None, 4), cues=(0, 6)).schedule()
    schedule.switch("another")
    tasks = iter(schedule)
    parts = next(task for task in tasks if task.parts).parts
    assert [part.cue for part in parts] == [2, 2, 1, 1]
    with pytest.raises(UserError, match="the last block has begun"):
        schedule.switch("too late")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": None}, r"^the clip strategy makes all of a video at once, so it needs --sec"),
        ({"seconds": 5 / 16}, r"^4 clips can't be cut out of 2 latent frames; set clips to at mo"),
        ({"height": 60}, r"^size 80x60 can't be tiled"),
        (
            {"cues": (Cue(0, "a"), Cue(30 / 16, "b"))},
            r"^the prompt at 1.875 s would never be seen: prompts change where a clip begins, at "
            r"0, 0.5625, 1.3125, 1.8125 s, and none is left to it$",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(change: dict[str, Any], message: str) -> None:
    schedule = Walk(Clip(SCOPES, None, 4)).schedule()
    with pytest.raises(UserError, match=message):
        Schedule(schedule.strategy, replace(schedule.request, **change), schedule.spec, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scopes(halo=-1), "halo must be at least 0 latent frames, got -1"),
        (lambda: Scopes(global_frames=-1), "global_frames must be at least 0, got -1"),
        (lambda: Scopes(bias=-1.0), "bias must be at least 0, got -1"),
        (lambda: Scopes(switch=1.5), r"switch is a share of the steps, 0 \.\. 1, got 1\.5"),
        (lambda: Clip(SCOPES, 12, 4), "set either clip_frames or clips, and the other to null"),
        (lambda: Clip(SCOPES, None, None), "set either clip_frames or clips"),
        (lambda: Clip(SCOPES, 0), "clip_frames must be at least 1 latent frame, got 0"),
        (lambda: Clip(SCOPES, None, 0), "clips must be at least 1, got 0"),
        (lambda: Clip(SCOPES, blend=-1), "blend must be at least 0 clips, got -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
