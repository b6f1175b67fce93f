"""What Longtake would do on many H100, by simulation: `python scripts/scaling_study.py` writes
docs/scaling.md. Minutes on one core; the same text every time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from longtake.launch.plan import Question, candidates, read_question
from longtake.scheduler.planner import Choice, Planner, Wish
from longtake.scheduler.request import Cue
from longtake.scheduler.schedule import Strategy

DOC = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
INTRO = Path(__file__).with_name("scaling_study.md")
DEVICES = (1, 8, 64, 512)
LENGTHS = (60.0, 600.0, 3600.0)
SIZES = ("832x480", "1280x720")
WORLDS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
ONE_MINUTE = 60.0
AT_LEAST = 0.3  # of the time: less is not what a plan waits for


@dataclass(frozen=True)
class Family:
    """Strategies for models of one kind of training, and how such models are run.

    `endless` are those that need no more for a longer video; the others make all of it at once.
    """

    name: str
    strategies: tuple[str, ...]
    endless: tuple[str, ...]
    steps: int
    guidance: float


STREAMS = ("causal", "cascade", "rolling", "chunks", "stream")
FAMILIES = (
    Family("causal", STREAMS, STREAMS, 4, 1.0),
    Family("joint", ("bidirectional", "clip", "dual", "keyframes", "windows"), ("dual",), 50, 5.0),
)


def ask(family: Family, size: str, seconds: float, devices: int) -> Question:
    return read_question(
        [Cue(0.0, "anything")],
        cluster=f"h100x{devices}" if devices in DEVICES else "h100x512",
        model="wan2.1-14b",
        seconds=seconds,
        size=size,
        strategy=None,
        steps=family.steps,
        settings=[f"guidance={family.guidance}"],
    )


def best_of(question: Question, strategies: Mapping[str, Strategy], wish: Wish) -> Choice | str:
    """The best plan, or why there is none."""
    planner = Planner(
        question.request, question.spec, question.steps, question.cluster, question.costs
    )
    advice = planner.search(strategies, wish)
    return advice.best[0] if advice.best else advice.rejected[-1].reason


def plans(family: Family) -> Iterator[str]:
    """A table of the plans that are through first."""
    yield "| size | GPUs | take | 1 min | 10 min | 60 min | first frame | GPU-s | Wh |"
    yield "|---|--:|---|--:|--:|--:|--:|--:|--:|"
    for size in SIZES:
        for devices in DEVICES:
            found = []
            for seconds in LENGTHS:
                question = ask(family, size, seconds, devices)
                names = family.strategies if seconds == ONE_MINUTE else family.endless
                found.append(best_of(question, candidates(question, names), Wish(best=1)))
            best, *_ = found
            if isinstance(best, str):
                yield f"| {size} | {devices} | nothing fits | - | - | - | - | - | - |"
                continue
            made = best.prediction
            spans = (
                each if isinstance(each, str) else span(each.prediction.seconds) for each in found
            )
            yield (
                f"| {size} | {devices} | {best.candidate.describe()} | {' | '.join(spans)} | "
                f"{span(made.first_frame)} | {made.seconds * made.workers:.0f} | "
                f"{made.joules / 3600:.0f} |"
            )


def growth(family: Family, size: str) -> Iterator[str]:
    """A table of times by strategy and number of workers, and what is in the way at the end."""
    yield f"| strategy | {' | '.join(map(str, WORLDS))} | what is in the way then |"
    yield f"|---|{'--:|' * len(WORLDS)}---|"
    question = ask(family, size, ONE_MINUTE, WORLDS[-1])
    for name in family.strategies:
        found: dict[int, Choice] = {}
        why = ""
        for world in WORLDS:
            wish = Wish(best=1, simulated=10, workers=world)
            best = best_of(question, candidates(question, [name]), wish)
            if isinstance(best, str):
                why = best
            else:
                found[world] = best
        cells = (
            span(found[world].prediction.seconds) if world in found else "-" for world in WORLDS
        )
        yield f"| {name} | {' | '.join(cells)} | {obstacle(found, question) if found else why} |"


def obstacle(found: Mapping[int, Choice], question: Question) -> str:
    """What most of the time of the largest plan goes into that more workers would not shorten.

    Stages that take turns are as one that has all layers: what counts is where its time goes.
    """
    choice = found[max(found)]
    made, degrees = choice.prediction, choice.candidate.degrees
    device, layers = choice.candidate.cluster.devices[0], question.spec.layers
    first = next(iter(made.lanes.values()))
    launching = min(first.compute, first.parts * layers / degrees.stages * device.launch_floor)
    at_work = 1 - made.bubble
    shares = {
        "decoding": made.decoding / made.seconds,
        "launching kernels": launching / made.seconds / at_work,
        "bytes on their way": made.exposed / at_work,
    }
    worst = max(shares, key=lambda name: shares[name])
    if shares[worst] < AT_LEAST:
        worst, share = "stages that wait", made.bubble
        if share < AT_LEAST:
            return f"nothing yet: all compute {made.utilisation:.0%} of the time"
        return f"{worst}, {share:.0%} of the time"
    whole = "a stage's turn" if made.bubble > AT_LEAST else "the time"
    return f"{worst}, {min(1.0, shares[worst]):.0%} of {whole}"


def span(seconds: float) -> str:
    """Such as `42 s` or `1.5 h`."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def document() -> Iterator[str]:
    """All of it, line by line."""
    yield INTRO.read_text(encoding="utf-8").rstrip()
    for family in FAMILIES:
        guided = "with guidance" if family.guidance > 1 else "without guidance"
        yield f"\n## A {family.name} model: {family.steps} steps, {guided}\n"
        yield from plans(family)
        yield f"\nOne minute of {SIZES[0]}, by strategy and number of GPUs:\n"
        yield from growth(family, SIZES[0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/scaling.md.")
    parser.add_argument("--out", type=Path, default=DOC)
    out = parser.parse_args().out
    with out.open("w", encoding="utf-8") as file:
        for line in document():
            print(line, file=file, flush=True)  # it takes minutes: what there is can be read
    print(out)


if __name__ == "__main__":
    main()
