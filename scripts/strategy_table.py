"""Make the same prompts with every strategy and measure them, for the end of docs/quality.md.

    python scripts/strategy_table.py --out-dir strategies

Prompts are some of those of `quality_table.py`, evenly spread. Videos that are there already are
measured, not made again. How much faster two workers are is what `benchmarks/scaling.py` measured.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from quality_table import DOCS, GUIDANCE, STRATEGIES, captions, machine

import longtake
from longtake.launch.judge import judge
from longtake.launch.places import default_run_dir
from longtake.runtime.evaluate import Report

ALL = 20  # prompts in the table that these are taken from
NAMES = [  # each once: longlive and self-forcing are causal
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
    if video.exists():  # a video appears under its name only when it is finished
        return video
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
    cells.append(f"{min(report.matching or 0 for report in reports):.3f}")
    cells.append(f"{speedup(name):.2f}")
    print(" | ".join(cells), flush=True)
    return cells


def speedup(name: str) -> float:
    """Of two workers, the median of neighbouring runs."""
    measured = json.loads((DOCS.parent / "benchmarks" / "scaling.json").read_text(encoding="utf-8"))
    (pairs,) = [pairs for case, pairs in measured.items() if case.partition(":")[0] == name]
    return statistics.median(one / two for one, two in pairs)


def section(rows: list[list[str]], seeds: list[int], seconds: float) -> str:
    """The end of the page."""
    heads = ["strategy", *COLUMNS, "worst matching", "two workers"]
    table = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    command = shlex.join(["python", "scripts/strategy_table.py", *sys.argv[1:]])
    which = "the prompts" if len(seeds) == ALL else f"the prompts of seeds {seeds}"
    return "\n\n".join(
        [
            STRATEGIES.strip(),
            f"Each made {which} of above, {seconds:g} seconds each, with `--set {GUIDANCE}`; the "
            "numbers are medians. *jerk*: the third difference of the position of the shape; *two "
            "workers*: how many times as fast two are as one, on a model with enough work "
            f"([scaling.md](../benchmarks/scaling.md)). Made by `{command}` with longtake "
            f"{longtake.__version__}, on {machine()}.",
            "\n".join(f"| {' | '.join(line)} |" for line in table),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure all strategies on tinyworld.")
    parser.add_argument("--out-dir", type=Path, default=Path("strategies"), help="for the videos")
    parser.add_argument("--prompts", type=int, default=ALL, help=f"how many of the {ALL}")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each video")
    parser.add_argument("--only", nargs="*", default=NAMES, help="make these, write no page")
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    seeds = [index * ALL // args.prompts for index in range(args.prompts)]
    rows = [row(name, seeds, args.seconds, args.out_dir) for name in args.only]
    if args.only == NAMES:
        page = DOCS / "quality.md"
        others, _, _ = page.read_text(encoding="utf-8").partition(STRATEGIES)
        text = section(rows, seeds, args.seconds)
        page.write_text(f"{others}\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
