"""Draw the schedule of every strategy: `python scripts/draw_schedules.py` writes
docs/images/schedule_*.svg.

The pictures are drawn from the very tasks that workers walk.
"""

from __future__ import annotations

from pathlib import Path

from longtake.launch.config import compose_settings, options
from longtake.scheduler.drawing import draw
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SPEC = ModelSpec(6, 5, 32, 512, 8, 2, 1024, 3)  # tinyworld's
SECONDS, STEPS = 9.0, 4


def main() -> None:
    request = Request((Cue(0, "a shape"),), SECONDS, 64, 64, 16)
    for name in options("strategy"):
        strategy = compose_settings({"strategy": name}).strategy.strategy_of(STEPS)
        try:
            schedule = Schedule(strategy, request, SPEC, STEPS)
        except UserError as error:
            print(f"{name}: {error}")
            continue
        title = f"{name}: {SECONDS:g} seconds in {STEPS} steps"
        path = IMAGES / f"schedule_{name}.svg"
        path.write_text(draw(schedule, STEPS, title), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
