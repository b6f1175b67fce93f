"""Pictures of schedules: a cell for each block of each evaluation."""

from __future__ import annotations

from xml.etree import ElementTree

from longtake.scheduler.drawing import draw
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Retention
from longtake.scheduler.schedule import Schedule, Strategy
from longtake.scheduler.strategies.cascade import Cascade
from longtake.scheduler.strategies.causal import Causal

SPEC = ModelSpec(8, 12, 16, 64, 4, 2, 1024, 3)
SVG = "{http://www.w3.org/2000/svg}"
STEPS = 3


def cells(strategy: Strategy, evaluations: int = 100) -> list[tuple[float, float, str]]:
    """Column, row and text of all cells, in order."""
    cues = (Cue(0, "one"), Cue(1.3125, "two"))
    schedule = Schedule(strategy, Request(cues, 3.0, 32, 32, 16), SPEC, STEPS)
    drawn = ElementTree.fromstring(draw(schedule, STEPS, "a < b", evaluations))
    marks = [x for x in drawn.iter(f"{SVG}text") if x.get("text-anchor") == "middle"]
    return [(float(x.get("x", 0)), float(x.get("y", 0)), x.text or "") for x in marks]


def test_a_block_takes_its_steps_from_left_to_right() -> None:
    found = cells(Causal(Retention()))
    assert [text for _, _, text in found] == [*"012C", *"012C", "R", *"012C", *"012C", *"012C"]
    columns = [x for x, _, _ in found]
    assert columns == sorted(columns) and len(set(columns)) == len(columns)
    assert len({y for _, y, _ in found}) == 5


def test_blocks_of_one_launch_share_a_column() -> None:
    found = cells(Cascade(Retention(recache=False), in_flight=2))
    assert sorted(text for _, _, text in found) == sorted("012C" * 5)
    assert len({x for x, _, _ in found}) < len(found)


def test_no_more_evaluations_are_drawn_than_asked() -> None:
    assert len(cells(Causal(Retention()), evaluations=3)) == 3
