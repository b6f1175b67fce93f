"""`longtake strategies`: what its table takes from the configuration and the strategies."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from click.testing import Result

from longtake.launch.config import options
from longtake.launch.strategy_list import Listed, strategies


@pytest.fixture(scope="module")
def listed() -> list[Listed]:
    return list(strategies())


def test_every_strategy_is_told_in_a_sentence_with_its_source(listed: list[Listed]) -> None:
    assert [one.name for one in listed] == options("strategy")
    for one in listed:
        assert re.fullmatch(r"[A-Z][^\n]{10,170}", one.about) and "arXiv" not in one.about
        assert one.label == ("exact" if one.name == "bidirectional" else "lossy")
    unsourced = {one.name for one in listed if not one.source}
    assert unsourced == {"bidirectional", "causal"}


def test_degrees_tell_what_can_be_shared_out(listed: list[Listed]) -> None:
    degrees = {one.name: one.degrees for one in listed}
    assert degrees["causal"] == "cfg, stages, ring, ulysses"
    assert degrees["cascade"].endswith("clip to 2") and degrees["clip"].endswith("clip to 21")


@pytest.mark.parametrize("columns", [80, 200])
def test_command_shows_them(
    cli: Callable[..., Result],
    listed: list[Listed],
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = cli("strategies")
    assert result.exit_code == 0
    assert all(one.name in result.stdout for one in listed)
