"""One frame: the eye sees what the world drew, and nothing where something else is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.runtime import world
from longtake.runtime.track import observe, watch
from longtake.scheduler.errors import UserError

Frame = npt.NDArray[np.uint8]
X, Y = np.meshgrid(np.arange(world.SIZE) - 31.5, np.arange(world.SIZE) - 31.5)
RED, GRAY = world.COLORS["red"], world.BACKGROUNDS["gray"]


def picture(shape: str, color: str, background: str, center: npt.ArrayLike, radius: float) -> Frame:
    scene = world.Scene(shape, color, background, "standing still")
    track = world.Track(np.array([center]), np.array([radius]))
    frame: Frame = world.render(scene, track)[0]
    return frame


def drawn(mask: npt.NDArray[np.bool_]) -> Frame:
    return np.where(mask[..., None], RED, GRAY).astype(np.uint8)


@pytest.mark.parametrize("noise", [0.0, 10.2])  # grey levels; the second is a PSNR of 28 dB
@pytest.mark.parametrize("shape", world.SHAPES)
def test_all_colors_are_told_apart_on_all_backgrounds(shape: str, noise: float) -> None:
    rng = np.random.default_rng(1)
    for color in world.COLORS:
        for background in world.BACKGROUNDS:
            for radius in (0.7 * world.RADII["small"], world.RADII["large"]):
                frame = picture(shape, color, background, rng.uniform(16, 48, 2), radius)
                noisy = np.clip(np.rint(frame + rng.normal(0, noise, frame.shape)), 0, 255)
                seen = observe(noisy.astype(np.uint8))
                assert (seen.background, seen.color, seen.shape) == (background, color, shape)


@given(
    st.sampled_from(["circle", "square"]),  # their centroid is their centre
    st.floats(16, 48),
    st.floats(16, 48),
    st.floats(7, 14),
)
def test_position_and_area_are_finer_than_a_pixel(
    shape: str, x: float, y: float, radius: float
) -> None:
    seen = observe(picture(shape, "yellow", "black", (x, y), radius))
    np.testing.assert_allclose(seen.center, [x, y], atol=0.1)
    area = world.coverage(shape, np.array([[x, y]]), np.array([radius])).sum()
    assert seen.area == pytest.approx(area, rel=0.03)


@pytest.mark.parametrize(
    "mask",
    [
        (np.hypot(X, Y) < 12) & (np.hypot(X, Y) > 6),
        (np.abs(X) < 14) & (np.abs(Y) < 4),
        (np.hypot(X, Y) < 13) & (Y > 0),
        np.hypot(X / 2, Y) < 7,
        (np.abs(X) < 12) & (np.abs(Y) < 12) & ~((X > -3) & (Y < 3)),
        (np.hypot(X - 8, Y) < 9) | (np.hypot(X + 8, Y) < 9),
        (Y > -10.4) & (np.abs(X) < 0.5 * (10.4 - Y)),
    ],
    ids=["ring", "bar", "half", "ellipse", "corner", "eight", "triangle upside down"],
)
def test_what_is_no_shape_of_the_world_is_none(mask: npt.NDArray[np.bool_]) -> None:
    seen = observe(drawn(mask))
    assert seen.color == "red" and seen.background == "gray"
    assert seen.shape is None


@pytest.mark.parametrize("radius", [4, 6, 9])
def test_a_second_shape_spoils_the_picture(radius: int) -> None:
    one = drawn(np.hypot(X + 14, Y) < 10)
    assert observe(one).shape == "circle"
    two = drawn((np.hypot(X + 14, Y) < 10) | (np.hypot(X - 14, Y) < radius))
    assert observe(two).shape is None


def test_a_speck_does_not() -> None:
    frame = drawn(np.hypot(X + 10, Y) < 10)
    frame[50:52, 50:52] = RED
    assert observe(frame).shape == "circle"


def test_an_empty_frame_shows_a_background_only() -> None:
    seen = observe(drawn(np.zeros((64, 64), bool)))
    assert (seen.background, seen.color, seen.shape) == ("gray", None, None)
    assert np.isnan(seen.area) and np.isnan(seen.center).all() and np.isnan(seen.ink).all()


def test_noise_alone_shows_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert observe(noise).shape is None


@pytest.mark.parametrize("shape", world.SHAPES)
def test_a_faded_color_is_not_that_color(shape: str) -> None:
    for color, ink in world.COLORS.items():
        for background, paper in world.BACKGROUNDS.items():
            frame = picture(shape, color, background, (32, 32), 13).astype(float)
            faded = np.rint(0.5 * frame + 0.5 * np.array(paper)).astype(np.uint8)
            assert observe(faded).color != color, (ink, paper)


def test_a_dimmed_background_is_not_that_background() -> None:
    frame = picture("circle", "white", "pink", (32, 32), 13)
    assert observe(frame).background == "pink"
    assert observe((0.75 * frame).astype(np.uint8)).background is None


def test_a_video_is_watched_frame_by_frame() -> None:
    frames = [np.full((64, 64, 3), level, np.uint8) for level in (10, 250, 250, 247)]
    seen = watch(iter(frames))
    np.testing.assert_array_equal(seen.change, [np.nan, 240, 0, 3])
    assert seen.paper.shape == (4, 3) and seen.center.shape == (4, 2)
    assert seen.shape == (None,) * 4


def test_frames_of_other_sizes_are_watched_for_change_only() -> None:
    seen = watch(np.zeros((3, 48, 80, 3), np.uint8))
    assert (seen.height, seen.width) == (48, 80)
    assert seen.change[1:].tolist() == [0, 0] and np.isnan(seen.area).all()


def test_a_video_needs_frames_of_one_size() -> None:
    with pytest.raises(UserError, match="no frame"):
        watch([])
    with pytest.raises(UserError, match="differ in size"):
        watch([np.zeros((64, 64, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)])
