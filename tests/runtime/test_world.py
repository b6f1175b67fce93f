"""The procedural world says what it draws, and draws what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.runtime.world import (
    BACKGROUNDS,
    COLORS,
    GROWTH,
    MARGIN,
    MOTIONS,
    RADII,
    SHAPES,
    SIZE,
    SPEEDS,
    Scene,
    Track,
    coverage,
    parse_caption,
    random_scene,
    random_track,
    recolor,
    render,
)

SCENES = st.builds(
    Scene,
    shape=st.sampled_from(SHAPES),
    color=st.sampled_from(list(COLORS)),
    background=st.sampled_from(list(BACKGROUNDS)),
    motion=st.sampled_from(MOTIONS),
    size=st.none() | st.sampled_from(list(RADII)),
    speed=st.none() | st.sampled_from(list(SPEEDS)),
)
SHRUNK = 0.7  # the least of its radius that a growing and shrinking shape has
SEEDS = st.integers(0, 2**32 - 1)
MOVING = [motion for motion in MOTIONS if motion.startswith(("moving", "bouncing"))]


@given(SCENES)
def test_a_caption_reads_back_as_its_scene(scene: Scene) -> None:
    assert parse_caption(scene.caption) == scene


def test_case_spaces_a_full_stop_and_an_do_not_matter() -> None:
    scene = parse_caption("  An Red   circle standing still on a GRAY background. ")
    assert scene == Scene("circle", "red", "gray", "standing still")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red circle standing still on a red background",
        "a circle red standing still on a gray background",
        "a huge red circle standing still on a gray background",
        "a red circle standing still on a gray background and a blue square",
        "two red circles standing still on a gray background",
    ],
)
def test_what_is_no_caption_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(ValueError, match="a legal one is '") as error:
        parse_caption(text)
    legal = str(error.value).split("a legal one is '")[1].split("'")[0]
    assert parse_caption(legal).caption == legal


@given(SCENES, SEEDS, st.integers(1, 400))
def test_shapes_keep_the_margin_and_their_size(scene: Scene, seed: int, frames: int) -> None:
    track = random_track(scene, frames, np.random.default_rng(seed))
    assert track.centers.shape == (frames, 2) and track.radii.shape == (frames,)
    reach = track.radii[:, None] + MARGIN
    assert (track.centers >= reach - 1e-9).all()
    assert (track.centers <= SIZE - reach + 1e-9).all()
    sizes = [RADII[scene.size]] if scene.size else list(RADII.values())
    largest = min(size for size in sizes if size >= track.radii.max() - 1e-9)
    if scene.motion == "growing and shrinking":
        assert (track.radii >= SHRUNK * largest - 1e-9).all()
    else:
        assert (track.radii == largest).all()


@given(SCENES, SEEDS)
def test_a_track_is_the_beginning_of_a_longer_one(scene: Scene, seed: int) -> None:
    short = random_track(scene, 20, np.random.default_rng(seed))
    long = random_track(scene, 50, np.random.default_rng(seed))
    np.testing.assert_allclose(short.centers, long.centers[:20])
    np.testing.assert_allclose(short.radii, long.radii[:20])


@given(st.sampled_from(MOVING), st.sampled_from(list(SPEEDS)), SEEDS)
def test_a_moving_shape_has_the_stated_speed(motion: str, speed: str, seed: int) -> None:
    scene = Scene("square", "red", "gray", motion, "small", speed)
    track = random_track(scene, 200, np.random.default_rng(seed))
    steps = np.diff(track.centers, axis=0)
    assert np.median(np.hypot(*steps.T)) == pytest.approx(SPEEDS[speed])
    assert np.hypot(*steps.T).max() <= SPEEDS[speed] + 1e-9
    assert (np.ptp(track.centers[:, 0]) > 1) == (motion != "moving up and down")
    assert (np.ptp(track.centers[:, 1]) > 1) == (motion != "moving left and right")
    assert (steps.max(axis=0) > 0).any() and (steps.min(axis=0) < 0).any(), "it turns back"


@given(st.sampled_from(list(SPEEDS)), st.sampled_from(list(RADII)), SEEDS)
def test_a_growing_shape_stays_in_place_and_turns_at_both_ends(
    speed: str, size: str, seed: int
) -> None:
    scene = Scene("circle", "red", "gray", "growing and shrinking", size, speed)
    track = random_track(scene, 200, np.random.default_rng(seed))
    assert np.ptp(track.centers, axis=0) == pytest.approx([0, 0])
    rate = GROWTH * SPEEDS[speed]
    assert np.median(np.abs(np.diff(track.radii))) == pytest.approx(rate)
    assert track.radii.min() <= SHRUNK * RADII[size] + rate
    assert track.radii.max() >= RADII[size] - rate


@given(SEEDS)
def test_a_still_shape_does_not_move(seed: int) -> None:
    scene = Scene("triangle", "red", "gray", "standing still", None, "quickly")
    track = random_track(scene, 30, np.random.default_rng(seed))
    assert not np.diff(track.centers, axis=0).any() and not np.diff(track.radii).any()


@given(SCENES, SEEDS)
def test_a_picture_has_the_ink_inside_and_the_paper_around(scene: Scene, seed: int) -> None:
    track = random_track(scene, 3, np.random.default_rng(seed))
    video = render(scene, track)
    assert video.shape == (3, SIZE, SIZE, 3) and video.dtype == np.uint8
    for frame, (x, y) in zip(video, track.centers, strict=True):
        assert tuple(frame[int(y), int(x)]) == COLORS[scene.color]
        border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
        assert (border == BACKGROUNDS[scene.background]).all()


@given(st.sampled_from(SHAPES), st.floats(0, 1), st.floats(0, 1), st.floats(5, 13))
def test_coverage_is_a_share_and_moves_with_the_center(
    shape: str, x: float, y: float, radius: float
) -> None:
    centers = np.array([[30 + x, 31 + y], [33 + x, 29 + y]])
    cover = coverage(shape, centers, np.array([radius, radius]))
    assert cover.min() == 0 and cover.max() == 1
    assert np.abs(np.roll(cover[0], (-2, 3), (0, 1)) - cover[1]).max() < 1e-4
    square = (2 * radius) ** 2
    assert 0.3 * square < cover[0].sum() < square


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"star.*circle, square, triangle"):
        coverage("star", np.zeros((1, 2)), np.ones(1))


def test_random_scenes_are_a_function_of_the_seed_and_use_every_word() -> None:
    first, again = ([random_scene(np.random.default_rng(7)).caption] for _ in range(2))
    assert first == again
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(400)]
    assert {scene.shape for scene in scenes} == set(SHAPES)
    assert {scene.color for scene in scenes} == set(COLORS)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.motion for scene in scenes} == set(MOTIONS)
    assert {scene.size for scene in scenes} == {None, *RADII}
    assert {scene.speed for scene in scenes} == {None, *SPEEDS}


@given(SCENES, SEEDS)
def test_a_switch_changes_shape_and_color_but_not_the_movement(scene: Scene, seed: int) -> None:
    other = recolor(scene, np.random.default_rng(seed))
    assert other.shape != scene.shape and other.color != scene.color
    assert (other.motion, other.size, other.speed) == (scene.motion, scene.size, scene.speed)


def test_a_larger_radius_covers_more() -> None:
    track = Track(np.full((2, 2), 32.0), np.array([RADII["small"], RADII["large"]]))
    for shape in SHAPES:
        small, large = coverage(shape, track.centers, track.radii)
        assert (large >= small).all() and large.sum() > 1.5 * small.sum()
