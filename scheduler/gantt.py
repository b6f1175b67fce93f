"""A timeline as a picture: a row for each lane, a box for each thing that it does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from longtake.scheduler.drawing import KEPT, shade
from longtake.scheduler.picture import BLACK, WHITE, Box, Colour, Label, Picture, Rule
from longtake.scheduler.timeline import MAIN, Action, Activity

WIDTH, ROW, BAR, LEFT, TOP, BOTTOM = 1100, 30, 22, 150, 66, 34  # pixels
WAITING: Colour = (230, 85, 13)
DECODING: Colour = (188, 189, 220)
OTHER: Colour = (150, 150, 150)
LEAST = 0.4  # pixels: what is narrower is joined with its neighbours
DIGIT = 7  # pixels of one in a box
SHOWN = 80  # boxes in the fullest row, where no end is asked for

_STEP = re.compile(r"step (\d+)")
_BLOCK = re.compile(r"block (\d+)")


def draw_gantt(
    actions: Iterable[Action],
    workers: Mapping[int, str],
    title: str,
    steps: int,
    stop: float | None = None,
) -> Picture:
    """What the first worker of each lane does.

    Evaluations have the shade of the step that they take, from the first to the last, and where
    there is room the number of their block; green ones are clean and for the cache. Orange is
    standing still; violet is decoding, in a row of its own.

    Args:
        actions: on one clock that begins at 0, of any order.
        workers: what to call the row of a worker that has actions.
        title: above the picture.
        steps: that a block takes.
        stop: seconds that are drawn; None: as many as leave boxes wide enough to be told apart.
    """
    rows: dict[tuple[int, str], list[Action]] = {}
    for action in sorted(actions, key=lambda action: action.start):
        if action.activity is not Activity.TRANSFER:
            rows.setdefault((action.worker, action.lane), []).append(action)
    end = max((action.stop for row in rows.values() for action in row), default=1.0)
    stop = min(end, _enough(rows.values(), end) if stop is None else stop)
    order = sorted(rows, key=lambda key: (key[0], key[1] != MAIN, key[1]))
    height = TOP + ROW * len(order) + BOTTOM
    part = "" if stop >= end else f", the first {stop:.3g} s of {end:.4g} s"
    marks: list[Box | Rule | Label] = [Label(8, 20, title + part, BLACK, 14), *_legend(steps)]
    marks += _axis(stop, height)
    for at, (worker, lane) in enumerate(order):
        y = TOP + ROW * at
        name = workers.get(worker, f"worker {worker}") if lane == MAIN else lane
        marks.append(Label(8, y + 15, name))
        marks += _row(rows[worker, lane], y, steps, stop)
    return Picture(WIDTH, height, tuple(marks))


def _enough(rows: Iterable[Sequence[Action]], end: float) -> float:
    """The end of the first few boxes of the fullest row."""
    computed = ([a for a in row if a.activity is Activity.COMPUTE] for row in rows)
    return min((row[SHOWN - 1].stop for row in computed if len(row) > SHOWN), default=end)


def _row(actions: Sequence[Action], y: int, steps: int, stop: float) -> Iterator[Box | Label]:
    scale = (WIDTH - LEFT - 12) / stop
    reached = {activity: 0.0 for activity in Activity}
    ordered = sorted(actions, key=lambda a: (a.activity is Activity.WAIT, a.start))
    for action in ordered:  # waits lie on top: they may be inside of what computes
        if action.start >= stop:
            continue
        far = LEFT + min(action.stop, stop) * scale
        x = max(LEFT + action.start * scale, reached[action.activity])
        if far - x < LEAST:
            continue
        reached[action.activity] = far
        fill, dark = _colour(action, steps)
        yield Box(x, y, far - x, BAR, fill, min(1.0, (far - x) / 4), _told(action))
        block = _BLOCK.search(action.name)
        if block and action.activity is Activity.COMPUTE and far - x > DIGIT * len(block[1]) + 3:
            yield Label((x + far) / 2, y + 15, block[1], WHITE if dark else BLACK, centred=True)


def _colour(action: Action, steps: int) -> tuple[Colour, bool]:
    """Of a box, and whether it is dark."""
    if action.activity is Activity.WAIT:
        return WAITING, True
    if action.lane != MAIN:
        return DECODING, False
    step = _STEP.search(action.name)
    if step is not None:
        share = min(1.0, int(step[1]) / max(1, steps - 1))
        return shade(share), share > 0.5
    clean = action.name.startswith(("commit", "recache"))
    return (KEPT, True) if clean else (OTHER, True)


def _told(action: Action) -> str:
    return f"{action.name}: {action.start:.4g} to {action.stop:.4g} s"


def _legend(steps: int) -> Iterator[Box | Label]:
    kinds = [
        (shade(0), "first step"),
        (shade(1 if steps > 1 else 0), "last step"),
        (KEPT, "clean, for the cache"),
        (WAITING, "standing still"),
        (DECODING, "decoding"),
        (OTHER, "reading the prompt"),
    ]
    for at, (fill, what) in enumerate(kinds):
        x = LEFT + 150 * at
        yield Box(x, 32, 12, 12, fill)
        yield Label(x + 17, 42, what)


def _axis(stop: float, height: int) -> Iterator[Rule | Label]:
    """Lines at round seconds."""
    scale = (WIDTH - LEFT - 12) / stop
    digit = 10.0 ** len(str(int(stop))) if stop >= 1 else 1.0
    while digit * 5 > stop:
        digit /= 10
    every = next(digit * factor for factor in (1, 2, 5, 10) if stop / (digit * factor) <= 12)
    for at in range(int(stop / every + 1e-9) + 1):
        x = LEFT + at * every * scale
        yield Rule(x, TOP - 8, height - BOTTOM + 4)
        yield Label(x, height - 12, f"{at * every:g} s", centred=True)
