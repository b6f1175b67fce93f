"""A schedule as a picture: what each evaluation is about, block by block, and at which level."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from xml.sax.saxutils import escape

from longtake.scheduler.plan import EVALUATIONS
from longtake.scheduler.task import Kind, Task

CELL, LEFT, TOP, BOTTOM = 22, 64, 36, 30  # pixels
NOISY, CLEAN = (222, 235, 247), (8, 81, 156)  # the colours of the first and of the last level
KEPT = (44, 162, 95)  # of clean evaluations


@dataclass(frozen=True)
class Mark:
    """A block in an evaluation."""

    block: int
    text: str
    fill: str
    dark: bool = False
    finishes: bool = False


def draw(tasks: Iterable[Task], steps: int, title: str, evaluations: int = 40) -> str:
    """An SVG: a column for each evaluation, a row for each block, a shade for each level.

    A number is the step that a block takes, C its clean evaluation for the cache, R the window that
    is written again; an outline marks the step that finishes it. What is only there to be attended
    to is hollow.

    Args:
        tasks: of a schedule, in order.
        steps: that a block takes.
        title: above the picture.
        evaluations: how many are drawn at most.
    """
    evaluated = (task for task in tasks if task.kind in EVALUATIONS)
    columns = [list(_marks(task, steps)) for task in islice(evaluated, evaluations)]
    rows = 1 + max(mark.block for column in columns for mark in column)
    width, height = LEFT + CELL * len(columns) + 12, TOP + CELL * rows + BOTTOM
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="8" y="20" font-size="13">{escape(title)}</text>',
            *(
                f'<text x="8" y="{TOP + CELL * row + 15}" fill="dimgray">block {row}</text>'
                for row in range(rows)
            ),
            *(_cell(mark, at) for at, column in enumerate(columns) for mark in column),
            f'<text x="{LEFT}" y="{height - 10}" fill="dimgray">evaluations, in order</text>',
            "</svg>\n",
        ]
    )


def _marks(task: Task, steps: int) -> Iterator[Mark]:
    if not task.parts:
        if task.kind is Kind.DENOISE:
            yield _step(task.block, task.step, steps, task.last)
        else:
            yield Mark(task.block, "C" if task.kind is Kind.COMMIT else "R", _rgb(KEPT), dark=True)
    for part in task.parts:
        if part.step is None:
            yield Mark(part.block, "C", _rgb(KEPT), dark=True)
        elif part.idle:
            yield Mark(part.block, "", "none")
        else:
            yield _step(part.block, part.step, steps, part.last)


def _step(block: int, step: int, steps: int, last: bool) -> Mark:
    share = step / max(1, steps - 1)
    return Mark(block, str(step), _rgb(shade(share)), share > 0.5, last)


def shade(share: float) -> tuple[int, int, int]:
    """The colour of a level, from the noisiest, 0, to the last, 1."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(NOISY, CLEAN, strict=True))
    return red, green, blue


def _rgb(colour: tuple[int, int, int]) -> str:
    return f"rgb({','.join(map(str, colour))})"


def _cell(mark: Mark, column: int) -> str:
    x, y = LEFT + CELL * column, TOP + CELL * mark.block
    ink = "white" if mark.dark else "black"
    edge = 'stroke="black" stroke-width="2"' if mark.finishes else 'stroke="silver"'
    return (
        f'<rect x="{x + 2}" y="{y + 2}" width="{CELL - 4}" height="{CELL - 4}" rx="3" '
        f'fill="{mark.fill}" {edge}/>'
        f'<text x="{x + CELL // 2}" y="{y + 15}" text-anchor="middle" '
        f'fill="{ink}">{mark.text}</text>'
    )
