"""What MemFlow's cache holds, block by block."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.scheduler.bank_retention import BankRetention
from longtake.scheduler.errors import UserError
from longtake.scheduler.task import Span


@st.composite
def policies(draw: st.DrawFn) -> tuple[BankRetention, int]:
    block, sink, bank = draw(st.integers(1, 4)), draw(st.integers(0, 6)), draw(st.integers(1, 4))
    window = sink + bank + block + draw(st.integers(0, 9))
    return BankRetention(window, sink, bank, draw(st.integers(1, 4))), block


@given(policies())
def test_a_frame_goes_to_the_bank_when_it_leaves_the_window(
    case: tuple[BankRetention, int],
) -> None:
    policy, size = case
    bank: list[int] = []  # all that were ever offered
    local: list[int] = []
    for block in range(40):
        frames = Span(block * size, (block + 1) * size)
        local += [frame for frame in frames.frames() if frame >= policy.sink]
        while len(local) > policy.window - policy.sink - policy.bank:
            left = local.pop(0)
            if left % size == 0 and left // size % policy.every == 0:
                bank.append(left)
        held = min(policy.bank, len(bank))
        assert policy.banked(frames.stop, size) == held
        seen = min(policy.sink, frames.stop) + held + len(local)
        assert policy.taken(frames, size) == seen - size
        assert seen <= policy.capacity(None)
        assert sum(map(len, policy.context(frames))) == seen - size
        left_alone, again, first = policy.recached(frames.stop)
        assert first == 0 and again.stop == frames.stop
        kept = sum(map(len, left_alone))
        assert kept in (0, policy.sink) and (again.start > policy.sink) <= (kept == policy.sink)
        assert policy.taken(again, size) == seen - len(again)


def test_the_numbers_of_the_paper() -> None:
    """3 sink frames, 3 of the bank, 6 past and 3 of the block itself."""
    policy = BankRetention()
    assert [policy.banked(stop, 3) for stop in range(12, 45, 3)] == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
        3,
        3,
    ]
    assert policy.context(Span(60, 63)) == (Span(0, 3), Span(51, 60))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: BankRetention(sink=-1), "sink must be at least 0, got -1"),
        (lambda: BankRetention(bank=0), "bank must be at least 1, got 0"),
        (lambda: BankRetention(every=0), "every must be at least 1, got 0"),
        (lambda: BankRetention(active=0), "active must be at least 1, got 0"),
        (
            lambda: BankRetention(8).check(3, 90, 1024),
            "a window of 8 latent frames can't hold 3 sink frames, a bank of 3 and a block of 3; "
            "the least is 9",
        ),
        (lambda: BankRetention().check(3, None, 14), "the model's rotary table has 14 rows"),
    ],
)
def test_what_can_not_run_is_refused(make: Callable[[], None], line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line)) as caught:
        make()
    assert "\n" not in str(caught.value)
