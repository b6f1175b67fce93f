"""What Longtake would do on many H100, by simulation: `python scripts/scaling_study.py` writes
docs/scaling.md. Minutes on one core; the same text every time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from longtake.launch.plan import Question, candidates, read_question
from longtake.scheduler.planner import Choice, Planner, Wish
from longtake.scheduler.request import Cue
from longtake.scheduler.schedule import Strategy

DOC = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
INTRO = Path(__file__).with_name("scaling_study.md")
CLUSTER, DEVICES = "h100x512", (8, 64, 512)
LENGTHS = {60.0: "1 min", 600.0: "10 min", 3600.0: "60 min"}
SIZES = ("832x480", "1280x720")
WORLDS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
ONE_MINUTE = 60.0
NEARLY = 0.8  # of the time: what takes so much of it is what the plan waits for


@dataclass(frozen=True)
class Family:
    """Strategies for models of one kind of training, and how such models are run."""

    name: str
    strategies: tuple[str, ...]
    steps: int
    guidance: float


CAUSAL = Family("causal", ("causal", "cascade", "rolling", "chunks", "stream"), 4, 1.0)


GOALS: dict[str, Callable[[Choice], float]] = {
    "soonest": lambda choice: choice.prediction.seconds,
    "first frame": lambda choice: choice.prediction.first_frame,
    "cheapest": lambda choice: choice.prediction.seconds * choice.prediction.workers,
}


def ask(family: Family, size: str, seconds: float, cluster: str) -> Question:
    return read_question(
        [Cue(0.0, "anything")],
        cluster=cluster,
        model="wan2.1-14b",
        seconds=seconds,
        size=size,
        strategy=None,
        steps=family.steps,
        settings=[f"guidance={family.guidance}"],
    )


@cache
def strategies_of(family: Family) -> Mapping[str, Strategy]:
    return candidates(ask(family, SIZES[0], ONE_MINUTE, CLUSTER), family.strategies)


@cache
def best_of(family: Family, size: str, seconds: float, name: str, world: int) -> Choice | str:
    """The best plan of a strategy on exactly so many GPUs, or why there is none."""
    question = ask(family, size, seconds, CLUSTER)
    planner = Planner(
        question.request, question.spec, question.steps, question.cluster, question.costs
    )
    wish = Wish(best=1, simulated=3, workers=world)
    advice = planner.search({name: strategies_of(family)[name]}, wish)
    return advice.best[0] if advice.best else advice.rejected[-1].reason


def all_of(family: Family, size: str, seconds: float, most: int) -> list[Choice]:
    """The best plan of each strategy on each number of GPUs up to `most`."""
    found = (
        best_of(family, size, seconds, name, world)
        for name in family.strategies
        for world in WORLDS
        if world <= most
    )
    return [each for each in found if isinstance(each, Choice)]


def price(choice: Choice, seconds: float) -> tuple[float, float]:
    """GPU-seconds and Wh of a minute of video."""
    found, minutes = choice.prediction, seconds / 60
    return found.seconds * found.workers / minutes, found.joules / 3600 / minutes


def plans(family: Family, size: str) -> Iterator[str]:
    """A table of the best plans, by goal."""
    yield "| goal | GPUs | video | plan | used | through in | first frame | FPS | GPU-s | Wh |"
    yield "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|"
    for goal, value in GOALS.items():
        for devices in DEVICES if goal != "cheapest" else DEVICES[:1]:
            for seconds, length in LENGTHS.items():
                best = min(all_of(family, size, seconds, devices), key=value)
                found, (work, energy) = best.prediction, price(best, seconds)
                yield (
                    f"| {goal} | {devices} | {length} | {best.candidate.describe()} | "
                    f"{found.workers} | {span(found.seconds)} | {span(found.first_frame)} | "
                    f"{found.fps:.3g} | {work:.0f} | {energy:.0f} |"
                )


def growth(family: Family, size: str, seconds: float = ONE_MINUTE) -> Iterator[str]:
    """A table of times by strategy and number of workers, and what is in the way at the end."""
    yield f"| strategy | {' | '.join(map(str, WORLDS))} | what is in the way then |"
    yield f"|---|{'--:|' * len(WORLDS)}---|"
    for name in family.strategies:
        found = {world: best_of(family, size, seconds, name, world) for world in WORLDS}
        made = {world: each for world, each in found.items() if isinstance(each, Choice)}
        cells = (span(made[world].prediction.seconds) if world in made else "-" for world in WORLDS)
        why = obstacle(made[max(made)]) if made else found[WORLDS[-1]]
        yield f"| {name} | {' | '.join(cells)} | {why} |"


def obstacle(choice: Choice) -> str:
    """What most of the time of a plan goes into that more workers would not shorten."""
    found = choice.prediction
    if found.decoding >= NEARLY * found.seconds:
        return f"rank 0 decodes, {found.decoding / found.seconds:.0%} of the time"
    lost = {
        "workers wait for work": found.bubble,
        "bytes are on their way": found.exposed,
        "workers compute": found.utilisation,
    }
    worst = max(lost, key=lambda name: lost[name])
    return f"{worst}, {lost[worst]:.0%} of the time"


def span(seconds: float) -> str:
    """Such as `42 s` or `1.5 h`."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def document() -> Iterator[str]:
    """All of it, line by line."""
    yield INTRO.read_text(encoding="utf-8").rstrip()
    for family in (CAUSAL,):
        guided = "with guidance" if family.guidance > 1 else "without guidance"
        yield f"\n## A {family.name} model, {family.steps} steps, {guided}"
        for size in SIZES:
            yield f"\n### {size}\n"
            yield from plans(family, size)
        yield f"\n### Where each strategy stops: one minute of {SIZES[0]}, by number of GPUs\n"
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
