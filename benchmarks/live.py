"""Live streams on this machine: one at its real rate; two alone, one after the other, and together.

    python benchmarks/live.py [--seconds 10] [--note FILE.md]

The input is a video that tinyworld makes first. A stream at its real rate tells how late its frames
are. Throughput is of streams that take their input as fast as it goes: frames a second, of both
together, from the first frame to the last, in the middle of three runs that take turns.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import longtake
from longtake.runtime.live_stream import LiveStream
from longtake.scheduler.pacing import LiveReport

FIRST = "a large red circle bouncing around slowly on a gray background"
PROMPTS = (FIRST, "a small blue square bouncing around slowly on a pink background")
STEPS = 2
REPEAT = 3


def all_at_once(streams: list[LiveStream]) -> None:
    """Take all frames of all of them, each in a thread of its own."""
    threads = [threading.Thread(target=list, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def live(room: Any, video: Path, prompts: tuple[str, ...]) -> list[LiveReport]:
    """Streams at their real rate."""
    streams = [room.join(prompt, input_video=video, live=True) for prompt in prompts]
    all_at_once(streams)
    return [stream.live.report() for stream in streams]


def rate(room: Any, video: Path, frames: int, together: bool) -> float:
    """Frames a second of two streams without deadlines, one after the other or together."""
    start = time.perf_counter()
    if together:
        all_at_once([room.join(prompt, input_video=video) for prompt in PROMPTS])
    else:
        for prompt in PROMPTS:
            all_at_once([room.join(prompt, input_video=video)])
    return 2 * frames / (time.perf_counter() - start)


def table(reports: dict[str, list[LiveReport]]) -> list[str]:
    """The live streams, a row each."""
    columns: dict[str, Callable[[LiveReport], str]] = {
        "frames": lambda r: str(r.frames),
        "late": lambda r: f"**{r.late}**",
        "due after": lambda r: f"{r.budget:.2f} s",
        "first frame": lambda r: f"{r.first_frame:.2f} s",
        "latency p50": lambda r: f"{r.latency_p50:.2f} s",
        "p99": lambda r: f"{r.latency_p99:.2f} s",
        "jitter p50": lambda r: f"{1000 * r.jitter_p50:.1f} ms",
        "p99 of it": lambda r: f"{1000 * r.jitter_p99:.1f} ms",
        "frames/s": lambda r: f"{r.frames_per_second:.2f}",
    }
    lines = ["| streams | " + " | ".join(columns) + " |", "|---" + "|--:" * len(columns) + "|"]
    for name, several in reports.items():
        for report in several:
            cells = " | ".join(cell(report) for cell in columns.values())
            lines.append(f"| {name} | {cells} |")
    return lines


def main() -> None:
    """Measure, and write the note."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--note", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "input.mp4"
        result = longtake.generate(FIRST, seconds=args.seconds, out=video, steps=4)
        with longtake.streams(seats=2, steps=STEPS) as room:
            list(room.join(FIRST, input_video=video))  # warm up
            reports = {
                "one": live(room, video, PROMPTS[:1]),
                "two that share launches": live(room, video, PROMPTS),
            }
            rates: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(REPEAT):
                for together in rates:
                    rates[together].append(rate(room, video, result.frames, together))
            times = room.launch_seconds
    alone, both = (statistics.median(rates[together]) for together in (False, True))
    ratios = [b / a for a, b in zip(rates[False], rates[True], strict=True)]
    lines = [
        "# Live streams",
        "",
        f"`python benchmarks/live.py --seconds {args.seconds:g}`: tinyworld, `stream` in {STEPS} "
        f"steps, 64x64 at 16 fps, from a video of {result.frames} frames; {os.cpu_count()} cores "
        f"({platform.processor() or platform.machine()}), {torch.get_num_threads()} thread of "
        f"torch for each lane, {platform.system()} {platform.release()}; Python "
        f"{platform.python_version()}, torch {version('torch')}, diffusers {version('diffusers')}.",
        "",
        "At their real rate, as from a camera. Latency is from when a frame comes until what is "
        "made of it is there; jitter is of frames that are shown when they are due.",
        "",
        *table(reports),
        "",
        f"As fast as it goes, two streams one after the other: {alone:.1f} frames/s; together: "
        f"{both:.1f} frames/s. Of neighbouring runs ({REPEAT}), together is "
        f"**{statistics.median(ratios):.2f}** times as fast ({min(ratios):.2f} .. "
        f"{max(ratios):.2f}). Each stream has lanes of its own for the VAE in both.",
        "",
        f"A launch of one stream took {1000 * times(1):.0f} ms at most of late, one of two "
        f"{1000 * times(2):.0f} ms.",
    ]
    args.note.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print({name: [asdict(report) for report in several] for name, several in reports.items()})


if __name__ == "__main__":
    main()
