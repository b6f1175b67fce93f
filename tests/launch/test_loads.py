"""What workers tell of themselves, as the central scheduler adds it up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.launch.test_central import PROMPT, play

from longtake.launch.jobs import Ask
from longtake.scheduler.tally import Load, Occupancy


def load(waited: float, sent: dict[int, int], used: int) -> dict[str, Any]:
    return Load(waited, sent, Occupancy(used, 100)).to_dict()


def test_what_workers_tell_of_themselves_is_added_up(tmp_path: Path) -> None:
    with play(tmp_path, count=2) as scene:
        asked = Ask(((0.0, PROMPT),), seconds=4.0, workers=2, settings=("parallel.ring=2",))
        id_ = scene.central.submit(asked).id
        first = scene.at_work(id_, 1)
        there = {"0": load(1.0, {1: 50}, 30), "1": load(2.0, {0: 70}, 40)}
        first.tell("beat", warm=None, job=id_, epoch=1, loads=there)
        first.tell("beat", warm=None, job=id_, epoch=0, loads={"0": load(99.0, {1: 99}, 99)})
        first.tell("beat", warm=None)
        scene.wait(lambda: scene.central.figures().cache)
        assert scene.central.figures().cache["cpu1"] == Occupancy(40, 100)
        there["0"] = load(1.5, {1: 60}, 30)
        first.tell("stopped", job=id_, epoch=1, frames=0, seconds=1.0, stages={}, loads=there)
        second = scene.at_work(id_, 2)  # what it counts begins anew
        second.tell("beat", warm=None, job=id_, epoch=2, loads={"1": load(0.5, {0: 7}, 10)})
        scene.wait(lambda: scene.central.figures().cache)
        figures = scene.central.figures()
        assert figures.waited == {"cpu0": 1.5, "cpu1": 2.5}
        assert figures.sent == {("cpu0", "cpu1"): 60, ("cpu1", "cpu0"): 77}
        assert figures.cache == {"cpu1": Occupancy(10, 100)}
