"""The measures pass what the world drew, and each fails on the video that is broken in its way."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from longtake.runtime import world
from longtake.runtime.evaluate import Report, causal_block_starts, evaluate
from longtake.runtime.footage import load_video
from longtake.runtime.video import Mp4Writer
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue

Video = npt.NDArray[np.uint8]
FPS = world.FPS
FRAMES = 128
STILL = world.Scene("circle", "red", "gray", "standing still", "small", "slowly")
MOVING = replace(STILL, motion="moving left and right", shape="square", color="blue")
COLORS, BACKGROUNDS = list(world.COLORS), list(world.BACKGROUNDS)


def film(scene: world.Scene, frames: int = FRAMES, seed: int = 3) -> Video:
    return world.render(scene, world.random_track(scene, frames, np.random.default_rng(seed)))


def along(scene: world.Scene, centers: Any, radii: Any = 9.0) -> Video:
    """The scene with its shape where the test says; both arguments are broadcast to all frames."""
    centers = np.broadcast_to(np.asarray(centers, float), (FRAMES, 2))
    return world.render(scene, world.Track(centers, np.broadcast_to(radii, FRAMES)))


def judge(video: Any, scene: world.Scene, **settings: Any) -> Report:
    return evaluate(video, [Cue(0, scene.caption)], FPS, **settings)


def assert_faultless(report: Report) -> None:
    assert (report.matching, report.matching_last, report.found) == (1, 1, 1)
    assert report.motion == 1 and report.pace in (1, None)
    assert report.jerk is not None and report.jerk < 0.6
    assert report.largest_step is not None and report.largest_step < 2.5
    assert report.size_drift is not None and abs(report.size_drift) < 0.03
    assert report.color_drift is not None and report.color_drift < 5
    assert report.background_drift is not None and report.background_drift < 3
    assert report.seam_ratio is not None and report.seam_ratio <= 1.1
    assert report.latent_ratio is not None and report.latent_ratio <= 1.1


def _every_motion_and_shape() -> Iterator[world.Scene]:
    for i, motion in enumerate(world.MOTIONS):
        for j, shape in enumerate(world.SHAPES):
            size = list(world.RADII)[(i + j) % 2]
            speed = list(world.SPEEDS)[(i + j // 2) % 2]
            color = COLORS[(4 * i + j) % len(COLORS)]
            yield world.Scene(shape, color, BACKGROUNDS[(i + j) % 5], motion, size, speed)


SCENES = list(_every_motion_and_shape())


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.caption)
def test_what_the_world_draws_is_faultless(scene: world.Scene) -> None:
    report = judge(film(scene), scene)
    assert_faultless(report)
    speed = world.SPEEDS[scene.speed or ""]
    if scene.motion.startswith(("moving", "bouncing")):
        assert report.speed == pytest.approx(speed, rel=0.05)
    elif scene.motion == "growing and shrinking":
        assert report.growth == pytest.approx(world.GROWTH * speed, rel=0.2)
    else:
        assert report.speed == pytest.approx(0, abs=0.01)
        assert report.radius == pytest.approx(world.RADII[scene.size or ""], rel=0.02)
        assert report.seam_ratio == report.latent_ratio == 1


@pytest.mark.parametrize("scene", SCENES[::3], ids=lambda s: s.caption)
def test_noise_of_28_db_is_tolerated(scene: world.Scene) -> None:
    video = film(scene)
    noise = np.random.default_rng(0).normal(0, 255 * 10 ** (-28 / 20), video.shape)
    assert_faultless(judge(np.clip(np.rint(video + noise), 0, 255).astype(np.uint8), scene))


@pytest.mark.parametrize("scene", SCENES[::3], ids=lambda s: s.caption)
def test_compression_is_tolerated(scene: world.Scene, tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "video.mp4", fps=FPS, height=world.SIZE, width=world.SIZE)
    writer.write(film(scene))
    writer.close()
    frames, fps = load_video(tmp_path / "video.mp4")
    assert_faultless(evaluate(frames, [Cue(0, scene.caption)], fps))


@pytest.mark.parametrize(
    ("attribute", "word"), [("color", "purple"), ("background", "teal"), ("shape", "triangle")]
)
def test_one_wrong_attribute_spoils_its_share_and_the_matching(attribute: str, word: str) -> None:
    report = judge(film(MOVING), replace(MOVING, **{attribute: word}))
    shares = {name: getattr(report, name) for name in ("color", "background", "shape")}
    assert shares == {"color": 1, "background": 1, "shape": 1} | {attribute: 0}
    assert report.matching == report.matching_last == 0


@pytest.mark.parametrize("drawn", world.MOTIONS)
def test_a_motion_matches_no_other_motions_caption(drawn: str) -> None:
    video = film(replace(STILL, motion=drawn), 48)
    shares = {said: judge(video, replace(STILL, motion=said)).motion for said in world.MOTIONS}
    assert shares == {said: float(said == drawn) for said in world.MOTIONS}


@pytest.mark.parametrize("motion", world.MOTIONS[1:])
def test_the_wrong_pace_is_told(motion: str) -> None:
    slow = replace(STILL, motion=motion, size="large", speed="slowly")
    report = judge(film(slow), replace(slow, speed="quickly"))
    assert (report.motion, report.pace, report.matching) == (1, 0, 1)


def test_a_frozen_video_does_not_move() -> None:
    report = judge(along(MOVING, (30, 30)), MOVING)
    assert (report.matching, report.motion, report.speed, report.pace) == (1, 0, 0, None)


def _teleporting(starts: list[int]) -> npt.NDArray[np.float64]:
    """Even motion that begins anew, somewhere else, at each of the frames in `starts`."""
    begun = np.searchsorted(starts, np.arange(FRAMES), side="right")
    since = np.arange(FRAMES) - np.array([0, *starts])[begun]
    return np.stack([20 + 0.75 * since, np.where(begun % 2, 20, 44)], axis=1)


def test_teleports_at_seams_show_in_the_seam_ratio() -> None:
    starts = causal_block_starts(FRAMES)
    report = judge(along(MOVING, _teleporting(starts)), MOVING)
    assert report.seam_ratio is not None and report.seam_ratio > 1.5
    assert report.largest_step is not None and report.largest_step > 20
    assert report.matching == 1
    assert report.latent_ratio == pytest.approx(1, abs=0.1), "the VAE is not to blame"
    assert report.block_ratio is not None and report.block_ratio > 1.5


def test_teleports_elsewhere_do_not() -> None:
    starts = causal_block_starts(FRAMES)
    video = along(MOVING, _teleporting([start + 5 for start in starts][:-1]))
    seam_ratio = judge(video, MOVING).seam_ratio
    assert seam_ratio is not None and seam_ratio < 1
    moved = judge(video, MOVING, block_starts=[start + 5 for start in starts]).seam_ratio
    assert moved is not None and moved > 1.5


def test_one_teleport_at_one_seam_of_a_still_video_is_enough() -> None:
    centers = np.where(np.arange(FRAMES)[:, None] < 33, (20, 20), (40, 40))
    seam_ratio = judge(along(STILL, centers), STILL).seam_ratio
    assert seam_ratio is not None and seam_ratio > 1.5


def test_motion_that_stops_inside_of_latent_frames_shows_in_the_latent_ratio() -> None:
    latent_starts = np.maximum(0, (np.arange(FRAMES) + 3) // 4 * 4 - 3)
    report = judge(film(MOVING)[latent_starts], MOVING)
    assert report.latent_ratio is not None and report.latent_ratio > 1.5
    assert report.block_ratio == pytest.approx(1, abs=0.2), "the blocks are not to blame"
    assert report.motion == 1 and report.speed == pytest.approx(world.SPEEDS["slowly"], rel=0.05)


def test_fading_shows_in_the_drift_and_in_the_last_seconds() -> None:
    paper = np.array(world.BACKGROUNDS[STILL.background])
    strength = np.linspace(1, 0, 320)[:, None, None, None]
    fading = np.rint(strength * film(STILL, 320) + (1 - strength) * paper).astype(np.uint8)
    report = judge(fading, STILL)
    assert report.color_drift is not None and report.color_drift > 50
    assert report.color_slope is not None and report.color_slope > 200
    assert report.background_drift is not None and report.background_drift < 1
    assert report.matching is not None and 0.2 < report.matching < 0.6
    assert report.matching_last == 0
    assert report.background == 1


def test_a_drifting_background_shows_in_its_drift() -> None:
    video = film(STILL).astype(float)
    video += np.linspace(0, 30, FRAMES)[:, None, None, None]
    report = judge(np.clip(np.rint(video), 0, 255).astype(np.uint8), STILL)
    assert report.background_drift is not None and report.background_drift > 35
    assert report.background_slope is not None and report.background_slope > 200


def test_trembling_shows_in_the_jerk() -> None:
    centers = 32 + np.random.default_rng(0).uniform(-1, 1, (FRAMES, 2))
    report = judge(along(STILL, centers), STILL)
    assert report.jerk is not None and report.jerk > 2
    assert report.matching == 1


def test_a_shape_that_grows_unasked_shows_in_the_size_drift() -> None:
    report = judge(along(STILL, (32, 32), np.linspace(8, 14, FRAMES)), STILL)
    assert report.size_drift is not None and 0.5 < report.size_drift < 0.75
    shrinking = judge(along(STILL, (32, 32), np.linspace(14, 8, FRAMES)), STILL)
    assert shrinking.size_drift is not None and shrinking.size_drift < -0.3
    assert report.matching == 1


def test_empty_frames_match_nothing() -> None:
    report = judge(along(STILL, (-100, -100)), STILL)
    assert (report.matching, report.color, report.shape, report.background) == (0, 0, 0, 1)
    assert (report.found, report.motion, report.speed) == (0, 0, None)
    assert report.color_drift is None and report.size_drift is None


def test_two_shapes_do_not_match_one() -> None:
    left_half = np.arange(world.SIZE)[:, None] < world.SIZE // 2
    two = np.where(left_half, along(STILL, (16, 32)), along(STILL, (48, 32)))
    report = judge(two, STILL)
    assert (report.matching, report.shape) == (0, 0)


def test_the_last_seconds_are_the_last_ten() -> None:
    wrong = replace(STILL, color="blue")
    report = judge(np.concatenate([film(wrong, 160), film(STILL, 160)]), STILL)
    assert (report.matching, report.matching_last) == (0.5, 1)
    report = judge(np.concatenate([film(STILL, 160), film(wrong, 160)]), STILL)
    assert (report.matching, report.matching_last, report.shape_last) == (0.5, 0, 1)


class TestTimeline:
    """A switch from STILL to OTHER at 4 s, that is at frame 64."""

    OTHER = replace(STILL, shape="triangle", color="yellow", background="teal")
    CUES = (Cue(0, STILL.caption), Cue(4, OTHER.caption))

    def switched(self, *parts: tuple[world.Scene, int]) -> Report:
        video = np.concatenate([film(scene, frames) for scene, frames in parts])
        return evaluate(video, self.CUES, FPS)

    def test_a_switch_on_its_mark_takes_no_time_and_makes_no_seam(self) -> None:
        report = self.switched((STILL, 64), (self.OTHER, 96))
        assert report.switch_seconds == (0,)
        assert report.matching == 1 and report.motion == 1
        assert report.seam_ratio == 1 and report.color_drift == 0
        assert report.largest_step == pytest.approx(0, abs=1e-6)

    def test_a_late_switch_is_timed_and_its_wait_does_not_match(self) -> None:
        report = self.switched((STILL, 76), (self.OTHER, 84))
        assert report.switch_seconds == (0.75,)
        assert report.matching == pytest.approx(1 - 12 / 160)
        assert report.seam_ratio == 1 and report.color_drift == 0 and report.size_drift == 0

    def test_a_switch_counts_once_it_is_stable(self) -> None:
        report = self.switched((STILL, 66), (self.OTHER, 7), (STILL, 5), (self.OTHER, 82))
        assert report.switch_seconds == ((66 + 7 + 5 - 64) / FPS,)

    @pytest.mark.parametrize("late", [96, 89])
    def test_a_switch_that_never_comes_has_no_time(self, late: int) -> None:
        report = self.switched((STILL, 64 + late), (self.OTHER, 96 - late))
        assert report.switch_seconds == (None,)
        assert report.matching is not None and report.matching < 0.5

    def test_the_old_prompt_is_not_good_enough_for_the_last_seconds(self) -> None:
        report = self.switched((STILL, 400))
        assert report.matching_last == 0 and report.matching == 64 / 400


def test_without_captions_what_needs_none_is_measured() -> None:
    report = evaluate(film(MOVING), [], FPS)
    assert report.matching is None and report.motion is None and report.color_last is None
    assert report.speed == pytest.approx(world.SPEEDS["slowly"], rel=0.05)
    assert report.seam_ratio is not None
    large = evaluate(np.zeros((30, 48, 80, 3), np.uint8), [], FPS)
    assert (large.seam_ratio, large.background_drift, large.speed, large.found) == (1, 0, None, 0)


def test_seconds_say_when_it_went_wrong() -> None:
    wrong = replace(STILL, color="blue")
    video = np.concatenate([film(STILL, 3 * FPS), film(wrong, FPS), film(STILL, 8)])
    report = judge(video, STILL)
    assert [second.color for second in report.per_second] == [1, 1, 1, 0, 1]
    assert [second.shape for second in report.per_second] == [1] * 5
    assert {second.motion for second in report.per_second} == {"standing still"}
    assert (report.frames, report.seconds) == (72, 4.5)


@pytest.mark.parametrize("frames", [1, 2, 5, 17])
@pytest.mark.parametrize("fps", [8, 15.9, 23.976])
def test_the_shortest_videos_have_a_report(frames: int, fps: float) -> None:
    report = evaluate(film(STILL, frames), [Cue(0, STILL.caption)], fps)
    assert report.matching == 1
    assert len(report.per_second) == int((frames - 1) // fps) + 1


def test_a_report_is_json() -> None:
    report = judge(along(STILL, (-100, -100)), STILL)
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert read["matching"] == 0 and read["speed"] is None
    assert read["per_second"][2]["second"] == 2


def test_memory_holds_few_frames_at_a_time() -> None:
    given: list[weakref.ref[Video]] = []
    most = 0

    def frames() -> Iterator[Video]:
        nonlocal most
        for frame in film(STILL, 40):
            copy = frame.copy()
            given.append(weakref.ref(copy))
            most = max(most, sum(one() is not None for one in given))
            yield copy

    assert judge(frames(), STILL).frames == 40
    assert most <= 3


def test_blocks_start_where_the_vae_puts_them() -> None:
    assert causal_block_starts(34) == [9, 21, 33]
    assert causal_block_starts(33) == [9, 21]
    assert causal_block_starts(12, block_frames=1, temporal_stride=4) == [1, 5, 9]


@pytest.mark.parametrize(
    ("cues", "message"),
    [
        ([Cue(0, "a dog on a beach")], "not a caption of the world"),
        ([Cue(1, STILL.caption)], "starts at 0 s"),
        ([Cue(0, STILL.caption), Cue(5, STILL.caption), Cue(3, STILL.caption)], "order of time"),
    ],
)
def test_a_timeline_that_cannot_be_judged_is_refused(cues: list[Cue], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(film(STILL, 8), cues, FPS)


def test_captions_are_for_videos_of_the_worlds_size() -> None:
    with pytest.raises(UserError, match="64x64 pixels only, this one has 80x48"):
        judge(np.zeros((4, 48, 80, 3), np.uint8), STILL)
