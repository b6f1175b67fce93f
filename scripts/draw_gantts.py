"""Draw who would do what when, for every strategy: `python scripts/draw_gantts.py` writes
docs/images/gantt_*.svg.

One example, fifteen seconds by Wan 1.3B in four steps, on four H100 that are four stages.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from longtake.launch.config import options
from longtake.launch.painting import write_picture
from longtake.launch.plan import read_question
from longtake.launch.simulate import gantt_of, lane_names, run_simulation
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SECONDS, STEPS = 15.0, 4


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a Gantt chart for every strategy.")
    parser.add_argument("--out", type=Path, default=IMAGES, help="a folder")
    parser.add_argument("--kind", choices=["svg", "png"], default="svg")
    asked = parser.parse_args()
    for name in options("strategy"):
        question = read_question(
            [Cue(0.0, "a cat")],
            cluster="h100x8",
            model="wan2.1-1.3b",
            seconds=SECONDS,
            size=None,
            strategy=name,
            steps=STEPS,
            settings=["parallel.stages=4"],
            workers=4,
        )
        try:
            made = run_simulation(question, keep_actions=True)
        except UserError as error:
            print(f"{name}: {error}")
            continue
        path = asked.out / f"gantt_{name}.{asked.kind}"
        write_picture(gantt_of(made, lane_names(made)), path)
        print(path)


if __name__ == "__main__":
    main()
