"""Generate a fixed set of videos with tinyworld, measure them, and write docs/quality.md.

    python scripts/quality_table.py --out-dir quality

Prompts and seeds are fixed. Videos that are there already are measured, not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import longtake
from longtake.runtime import world
from longtake.runtime.evaluate import Report, evaluate
from longtake.runtime.footage import load_video, strip
from longtake.scheduler.request import Cue

DOCS = Path(__file__).resolve().parent.parent / "docs"
PICTURES = 12  # in a strip
STRATEGIES = "\n## Strategies\n"  # heads what strategy_table.py writes at the page's end

COLUMNS: dict[str, Callable[[Report], float | None]] = {
    "matching": lambda report: report.matching,
    "last 10 s": lambda report: report.matching_last,
    "motion": lambda report: report.motion,
    "seam ratio": lambda report: report.seam_ratio,
    "block ratio": lambda report: report.block_ratio,
    "speed": lambda report: report.speed,
    "size drift": lambda report: report.size_drift,
    "colour drift": lambda report: report.color_drift,
}

EXPLANATION = """\
*matching*: share of frames whose background, colour and shape are all the prompt's; *last 10 s*:
the same over the last ten seconds; *motion*: share of seconds with the prompt's motion; *seam
ratio*: change from frame to frame where blocks meet over that inside of blocks (1 is seamless);
*block ratio*: the same among the first frames of latent frames alone, so without the VAE's part;
*speed*: of the shape's centre in pixels per frame; *size drift*: relative change of the radius from
the first to the last second; *colour drift*: RGB distance between the shape's colour in the first
and the last second. A dash: nothing to measure. All is measured from pixels, by `longtake eval`."""


TIMELINES = [  # color and shape change; size, motion and background stay
    (
        "a large {} bouncing around slowly on a gray background",
        "red circle, blue square, green triangle",
    ),
    (
        "a small {} moving left and right slowly on a black background",
        "yellow triangle, green circle, purple square",
    ),
    (
        "a large {} moving up and down slowly on a teal background",
        "white square, red triangle, blue circle",
    ),
]
GUIDANCE = "guidance=4"  # without it, shapes lose their corners
EVERY = 10  # seconds between changes of prompt


@dataclass(frozen=True)
class Row:
    """One video of the table."""

    caption: str
    seed: int
    video: Path
    report: Report


def captions(count: int) -> list[str]:
    """The first `count` prompts of an endless fixed list; each states size and speed."""
    rng = np.random.default_rng(0)
    scenes = []
    for _ in range(count):
        scene = world.random_scene(rng)
        size, speed = str(rng.choice(list(world.RADII))), str(rng.choice(list(world.SPEEDS)))
        scenes.append(replace(scene, size=scene.size or size, speed=scene.speed or speed))
    return [scene.caption for scene in scenes]


def measure(count: int, seconds: float, folder: Path) -> list[Row]:
    """Generate the videos that `folder` lacks, and measure all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed, caption in enumerate(captions(count)):
        video = folder / f"{seed:02d}_{seconds:g}s.mp4"
        if not video.exists():  # a video appears under its name only when it is finished
            longtake.generate(caption, seconds=seconds, seed=seed, out=video, settings=[GUIDANCE])
        frames, fps = load_video(video)
        report = evaluate(frames, [Cue(0, caption)], fps)
        print(f"{caption}: matching {report.matching:.3f}", flush=True)
        rows.append(Row(caption, seed, video, report))
    return rows


def measure_changes(folder: Path) -> str:
    """A table of how soon prompts take effect, with and without a re-cache."""
    lines = [["prompts", "seed", "re-cache", "seconds after the marks", "matching"]]
    lines.append(["---", "---:", "---", "---:", "---:"])
    for seed, (sentence, things) in enumerate(TIMELINES):
        cues = [Cue(EVERY * i, sentence.format(x)) for i, x in enumerate(things.split(", "))]
        for recache in (True, False):
            video = folder / f"changes_{seed}_{'with' if recache else 'without'}.mp4"
            if not video.exists():
                longtake.generate(
                    [(cue.at, cue.text) for cue in cues],
                    seconds=EVERY * len(cues),
                    seed=seed,
                    out=video,
                    settings=[GUIDANCE, f"strategy.recache={json.dumps(recache)}"],
                )
            frames, fps = load_video(video)
            report = evaluate(frames, cues, fps)
            delays = ", ".join("never" if d is None else f"{d:.2f}" for d in report.switch_seconds)
            name = sentence.format(f"({things})")
            how = "yes" if recache else "no"
            lines.append([name, str(seed), how, delays, _number(report.matching)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


CHANGES = """\
Three prompts each, the second at 10 s, the third at 20 s. *seconds after the marks*: from each mark
to the first of half a second of frames that all match the new prompt, in color, shape and
background. With a re-cache the window is rewritten under the new text, as LongLive does."""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(rows: list[Row]) -> str:
    lines = [["prompt", "seed", *COLUMNS], ["---", *["---:"] * (1 + len(COLUMNS))]]
    for row in rows:
        numbers = [_number(column(row.report)) for column in COLUMNS.values()]
        lines.append([row.caption, str(row.seed), *numbers])
    medians = []
    for column in COLUMNS.values():
        known = [value for row in rows if (value := column(row.report)) is not None]
        medians.append(f"**{_number(statistics.median(known) if known else None)}**")
    lines.append(["**median**", "", *medians])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {gpu}"


def write_page(rows: list[Row], changes: str, seconds: float, docs: Path) -> None:
    """Write quality.md and, under images/, the strips of the best, median and worst video."""
    ranked = sorted(rows, key=lambda r: (r.report.matching or 0, r.report.matching_last or 0))
    picked = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
    (docs / "images").mkdir(parents=True, exist_ok=True)
    pictures = []
    for rank, row in picked.items():
        strip(row.video, PICTURES, docs / "images" / f"quality_{rank}.png")
        said = f"The {rank}: *{row.caption}*, seed {row.seed}, {PICTURES} frames evenly spaced."
        pictures.append(f"{said}\n\n![{rank}](images/quality_{rank}.png)")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "numpy"))
    command = shlex.join(["python", "scripts/quality_table.py", *sys.argv[1:]])
    parts = [
        "# Quality of tinyworld",
        f"{len(rows)} prompts drawn with a fixed seed, none left out, {seconds:g} seconds each, "
        f"with `--set {GUIDANCE}`. "
        f"Made by `{command}` with longtake {longtake.__version__}, {packages}, Python "
        f"{platform.python_version()}, on {machine()}.",
        EXPLANATION,
        _table(rows),
        *pictures,
        "## Changes of prompt",
        CHANGES,
        changes,
    ]
    page = docs / "quality.md"
    _, *strategies = page.read_text(encoding="utf-8").partition(STRATEGIES)
    page.write_text("\n\n".join(parts) + "\n" + "".join(strategies), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure tinyworld; writes docs/quality.md.")
    parser.add_argument("--out-dir", type=Path, default=Path("quality"), help="where videos go")
    parser.add_argument("--count", type=int, default=20, help="how many prompts")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each video")
    args = parser.parse_args()
    if args.count < 1 or args.seconds <= 0:
        parser.error("--count and --seconds must be positive")
    rows = measure(args.count, args.seconds, args.out_dir)
    write_page(rows, measure_changes(args.out_dir), args.seconds, DOCS)


if __name__ == "__main__":
    main()
