"""Do ten minutes run as steadily as one? Time and memory along a long video.

    python benchmarks/steady.py [--seconds 600] [--note FILE.md]

Every run is cut into tenths of the video. The second and the last one are compared: wall time
and processor time a second of video, and resident memory; all processes of a run are summed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from bisect import bisect_left
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import longtake
from longtake.runtime.progress import Progress

FPS = 16
PROMPT = "a large red circle bouncing around slowly on a gray background"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
RUNS = {  # name: strategy, settings
    "causal, one worker": ("causal", ["parallel.workers=1"]),
    "dual, two workers": ("dual", ["parallel.workers=2", "parallel.stages=2"]),
}


@dataclass(frozen=True)
class Moment:
    """Seconds of wall clock and of processors, and resident MiB."""

    wall: float
    cpu: float
    memory: float


def family() -> list[int]:
    """This process and those that it has started."""
    children = Path("/proc/self/task").glob("*/children")
    return [os.getpid(), *(int(pid) for file in children for pid in file.read_text().split())]


def now() -> Moment:
    """What the processes of the run have used so far."""
    cpu, pages = 0, 0
    for pid in family():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu += int(fields[11]) + int(fields[12])
        pages += int(fields[21])
    return Moment(time.monotonic(), cpu / TICK, pages * PAGE / 2**20)


class Watch:
    """Notes the moment of every piece of video that comes; called by one thread at a time."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.moments: list[Moment] = []

    def __call__(self, progress: Progress) -> None:
        """See `longtake.generate`."""
        if progress.frames > (self.frames[-1] if self.frames else 0):
            self.frames.append(progress.frames)
            self.moments.append(now())

    def tenth(self, index: int) -> Moment:
        """Wall and processor seconds a second of video, and median memory, of a tenth of it."""
        bounds = [self.frames[-1] * edge / 10 for edge in (index, index + 1)]
        first, last = (bisect_left(self.frames, bound) for bound in bounds)
        start, stop = self.moments[first], self.moments[last]
        seconds = (self.frames[last] - self.frames[first]) / FPS
        return Moment(
            (stop.wall - start.wall) / seconds,
            (stop.cpu - start.cpu) / seconds,
            statistics.median(moment.memory for moment in self.moments[first : last + 1]),
        )


def measure(strategy: str, settings: list[str], seconds: float, folder: Path) -> Watch:
    """One run."""
    watch = Watch()
    longtake.generate(
        PROMPT,
        seconds=seconds,
        out=folder / f"{strategy}.mp4",
        strategy=strategy,
        settings=settings,
        on_progress=watch,
    )
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--note", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args()
    rows = []
    for name, (strategy, settings) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            watch = measure(strategy, settings, args.seconds, Path(folder))
        early, late = watch.tenth(1), watch.tenth(9)
        cells = [name, f"{watch.frames[-1]}"]
        for what, unit in (("wall", "s"), ("cpu", "s"), ("memory", "MiB")):
            before, after = getattr(early, what), getattr(late, what)
            digits = 0 if unit == "MiB" else 3
            cells += [f"{value:.{digits}f} {unit}" for value in (before, after)]
            cells.append(f"**{after / before:.3f}**")
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    page = [
        "# Ten minutes, steadily",
        "    python benchmarks/steady.py",
        f"tinyworld at 64x64 and 16 fps, {args.seconds:g} s of video in one run each; *2nd* and "
        "*10th* are tenths of the video. Times are those of a second of video; memory is resident, "
        "the tenth's median; all processes of a run are summed.",
        "| run | frames | wall, 2nd | 10th | ratio | processors, 2nd | 10th | ratio | memory, 2nd "
        "| 10th | ratio |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n" + "\n".join(rows),
        f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()} "
        f"{platform.release()}; Python {platform.python_version()}, torch {version('torch')}, "
        f"diffusers {version('diffusers')}.",
    ]
    args.note.write_text("\n\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
