"""All frames jointly."""

from __future__ import annotations

import pytest

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.strategies.bidirectional import Bidirectional
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
ONE = (Cue(0, "first"),)


def test_one_block_takes_every_step() -> None:
    request = Request(ONE, 81 / 16, 64, 64, 16)
    frames = Span(0, 21)
    assert list(Schedule(Bidirectional(), request, SPEC, steps=2)) == [
        Task(0, Kind.ENCODE, 0, frames, 0),
        Task(1, Kind.DENOISE, 0, frames, 0, step=0),
        Task(2, Kind.DENOISE, 0, frames, 0, step=1, last=True),
        Task(3, Kind.DECODE, 0, frames, 0),
    ]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(ONE, None, 64, 64, 16), r"^the bidirectional strategy can't stream; use causal$"),
        (Request((*ONE, Cue(1, "x")), 5, 64, 64, 16), r"^.* takes one prompt; for a timeline use"),
        (Request(ONE, 4094 / 16, 64, 64, 16), r"^255.875 s is 1025 latent .* 1024 rows; .* 256"),
        (Request(ONE, 5, 60, 64, 16), r"^size 64x60 can't be tiled"),
    ],
)
def test_what_it_cannot_do_is_refused(request_: Request, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Schedule(Bidirectional(), request_, SPEC, steps=2)


def test_it_reaches_the_end_of_the_rotary_table() -> None:
    request = Request(ONE, 4093 / 16, 64, 64, 16)
    assert {task.frames for task in Schedule(Bidirectional(), request, SPEC, 1)} == {Span(0, 1024)}
