"""The strict loader builds what fits and names what does not, by its path."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import pytest

from longtake.launch.strict import load
from longtake.scheduler.errors import UserError


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Round:
    kind: Literal["round"]
    radius: float


@dataclass(frozen=True)
class Square:
    kind: Literal["square"]
    side: int | None
    color: Color


@dataclass(frozen=True)
class Box:
    name: str
    open: bool
    shape: Round | Square
    sizes: tuple[float, ...]
    options: dict[str, Any]


def tree(**changes: Any) -> dict[str, Any]:
    whole = {
        "name": "a",
        "open": True,
        "shape": {"kind": "square", "side": None, "color": "red"},
        "sizes": [1, 2.5],
        "options": {"anything": [1]},
    }
    return {**whole, **changes}


def test_builds_what_fits() -> None:
    square = Square("square", None, Color.RED)
    assert load(Box, tree()) == Box("a", True, square, (1.0, 2.5), {"anything": [1]})
    box = load(Box, tree(shape={"kind": "round", "radius": 2}))
    assert box.shape == Round("round", 2.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nam": 1}, "unknown key 'nam'; known: name, open, shape, sizes, options"),
        ({"name": 3}, "name: expected text, got 3"),
        ({"open": 1}, "open: expected true or false, got 1"),
        ({"sizes": 3}, "sizes: expected a list, got 3"),
        ({"sizes": [1, "b"]}, "sizes[1]: expected a finite number, got 'b'"),
        ({"sizes": [float("nan")]}, "sizes[0]: expected a finite number, got nan"),
        ({"sizes": [True]}, "sizes[0]: expected a finite number, got True"),
        ({"options": 3}, "options: expected a group of keys, got 3"),
        ({"shape": 3}, "shape: expected a group of keys, got 3"),
        ({"shape": {"kind": "flat"}}, "shape.kind: expected one of round, square, got 'flat'"),
        ({"shape": {"radius": 2}}, "shape.kind: expected one of round, square, got None"),
        ({"shape": {"kind": "round"}}, "shape: missing key 'radius'"),
        (
            {"shape": {"kind": "round", "radius": 1, "side": 2}},
            "shape: unknown key 'side'; known: kind, radius",
        ),
        (
            {"shape": {"kind": "square", "side": "abc", "color": "red"}},
            "shape.side: expected int, got 'abc'",
        ),
        (
            {"shape": {"kind": "square", "side": 1, "color": "green"}},
            "shape.color: expected one of red, blue, got 'green'",
        ),
    ],
)
def test_names_what_does_not(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(Box, tree(**changes))
    assert str(caught.value) == words
