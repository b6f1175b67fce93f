"""Make the same prompts with every strategy, measure them, and write docs/quality_strategies.md.

    python scripts/strategy_table.py --out-dir strategies

Prompts are some of those of `quality_table.py`, evenly spread. Videos that are there already are
measured, not made again.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from quality_table import DOCS, GUIDANCE, captions, machine

import longtake
from longtake.launch.judge import judge
from longtake.launch.places import default_run_dir
from longtake.runtime.evaluate import Report

ALL = 20  # prompts in the table that these are taken from
STRATEGIES = [  # each once: longlive and self-forcing are causal
    *("causal", "deep", "memflow", "cascade", "rolling", "chunks", "buffer", "stream"),
    *("dual", "clip", "windows", "keyframes"),
]

COLUMNS: dict[str, Callable[[Report], float | None]] = {
    "matching": lambda report: report.matching,
    "last 10 s": lambda report: report.matching_last,
    "motion": lambda report: report.motion,
    "seam ratio": lambda report: report.seam_ratio,
    "jerk": lambda report: report.jerk,
    "size drift": lambda report: report.size_drift,
    "colour drift": lambda report: report.color_drift,
}


def make(name: str, seed: int, caption: str, seconds: float, folder: Path) -> Path:
    """A video, generated if the folder lacks it; one that was broken off is gone on with."""
    video = folder / f"{name}_{seed:02d}.mp4"
    if default_run_dir(video).exists():
        longtake.resume(default_run_dir(video))
    else:
        longtake.generate(
            caption, seconds=seconds, seed=seed, out=video, strategy=name, settings=[GUIDANCE]
        )
    return video


def row(name: str, seeds: list[int], seconds: float, folder: Path) -> list[str]:
    """Medians over the prompts."""
    videos = [make(name, seed, captions(ALL)[seed], seconds, folder) for seed in seeds]
    reports = [judge(video) for video in videos]
    cells = [name]
    for column in COLUMNS.values():
        known = [value for report in reports if (value := column(report)) is not None]
        cells.append(f"{statistics.median(known):.3f}" if known else "-")
    worst = min(report.matching or 0 for report in reports)
    cells.append(f"{worst:.3f}")
    print(" | ".join(cells), flush=True)
    return cells


def page(rows: list[list[str]], seeds: list[int], seconds: float) -> str:
    """The page."""
    heads = ["strategy", *COLUMNS, "worst matching"]
    table = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    command = shlex.join(["python", "scripts/strategy_table.py", *sys.argv[1:]])
    prompts = "\n".join(f"- {captions(ALL)[seed]} (seed {seed})" for seed in seeds)
    return "\n\n".join(
        [
            "# Strategies on tinyworld",
            f"{seconds:g} seconds each, with `--set {GUIDANCE}`, one worker; medians over "
            f"{len(seeds)} prompts. The columns are explained in [quality.md](quality.md); *jerk*: "
            "the median third difference of the shape's position. How much two workers speed each "
            "of them up is in [scaling.md](../benchmarks/scaling.md), on a model with enough work. "
            f"Made by `{command}` with longtake {longtake.__version__}, on {machine()}.",
            "\n".join(f"| {' | '.join(line)} |" for line in table),
            "Prompts:",
            prompts,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure all strategies on tinyworld.")
    parser.add_argument("--out-dir", type=Path, default=Path("strategies"), help="for the videos")
    parser.add_argument("--prompts", type=int, default=ALL, help=f"how many of the {ALL}")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each video")
    parser.add_argument("--only", nargs="*", default=STRATEGIES, help="make these, write no page")
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    seeds = [index * ALL // args.prompts for index in range(args.prompts)]
    rows = [row(name, seeds, args.seconds, args.out_dir) for name in args.only]
    if args.only == STRATEGIES:
        text = page(rows, seeds, args.seconds)
        (DOCS / "quality_strategies.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
