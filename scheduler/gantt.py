"""A timeline as a picture: a row for each lane, a box for each thing that it does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

from longtake.scheduler.drawing import CLEAN, KEPT, NOISY
from longtake.scheduler.timeline import MAIN, Action, Activity

WIDTH, ROW, BAR, LEFT, TOP, BOTTOM = 1100, 30, 20, 150, 62, 34  # pixels
WAITING, DECODING, OTHER = "rgb(230,85,13)", "rgb(158,154,200)", "rgb(150,150,150)"
LEAST = 0.4  # pixels: what is narrower is joined with its neighbours
SHOWN = 80  # boxes in the fullest row, where no end is asked for

_STEP = re.compile(r"step (\d+)")
_BLOCK = re.compile(r"block (\d+)")


def draw_gantt(
    actions: Iterable[Action],
    workers: Mapping[int, str],
    title: str,
    steps: int,
    stop: float | None = None,
) -> str:
    """An SVG of what the first worker of each lane does.

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
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="20" font-size="13">{escape(title + part)}</text>',
        *_legend(steps),
        *_axis(stop, height),
    ]
    for at, (worker, lane) in enumerate(order):
        y = TOP + ROW * at
        name = workers.get(worker, f"worker {worker}") if lane == MAIN else lane
        lines.append(f'<text x="8" y="{y + 15}" fill="dimgray">{escape(name)}</text>')
        lines += _row(rows[worker, lane], y, steps, stop)
    return "\n".join([*lines, "</svg>\n"])


def _enough(rows: Iterable[Sequence[Action]], end: float) -> float:
    """The end of the first few boxes of the fullest row."""
    computed = ([a for a in row if a.activity is Activity.COMPUTE] for row in rows)
    return min((row[SHOWN - 1].stop for row in computed if len(row) > SHOWN), default=end)


def _row(actions: Sequence[Action], y: int, steps: int, stop: float) -> Iterator[str]:
    scale = (WIDTH - LEFT - 12) / stop
    reached = {activity: 0.0 for activity in Activity}
    ordered = sorted(actions, key=lambda a: (a.activity is Activity.WAIT, a.start))
    for action in ordered:  # waits lie on top: they may be inside of what computes
        if action.start >= stop:
            continue
        x = LEFT + action.start * scale
        far = LEFT + min(action.stop, stop) * scale
        x = max(x, reached[action.activity])
        if far - x < LEAST:
            continue
        reached[action.activity] = far
        fill, dark = _colour(action, steps)
        yield (
            f'<rect x="{x:.2f}" y="{y}" width="{far - x:.2f}" height="{BAR}" fill="{fill}" '
            f'stroke="white" stroke-width="{min(0.5, (far - x) / 4):.2f}">'
            f"<title>{escape(_told(action))}</title></rect>"
        )
        block = _BLOCK.search(action.name)
        if block and action.activity is Activity.COMPUTE and far - x > 7 * len(block[1]) + 3:
            ink = "white" if dark else "black"
            yield (
                f'<text x="{(x + far) / 2:.2f}" y="{y + 14}" text-anchor="middle" fill="{ink}">'
                f"{block[1]}</text>"
            )


def _colour(action: Action, steps: int) -> tuple[str, bool]:
    """Of a box, and whether it is dark."""
    if action.activity is Activity.WAIT:
        return WAITING, True
    if action.lane != MAIN:
        return DECODING, False
    step = _STEP.search(action.name)
    if step is not None:
        return _shade(int(step[1]), steps)
    clean = action.name.startswith(("commit", "recache"))
    return (KEPT, True) if clean else (OTHER, True)


def _shade(step: int, steps: int) -> tuple[str, bool]:
    share = min(1.0, step / max(1, steps - 1))
    mixed = [round(a + (b - a) * share) for a, b in zip(NOISY, CLEAN, strict=True)]
    return f"rgb({','.join(map(str, mixed))})", share > 0.5


def _told(action: Action) -> str:
    return f"{action.name}: {action.start:.4g} to {action.stop:.4g} s"


def _legend(steps: int) -> Iterator[str]:
    kinds = [
        (_shade(0, steps)[0], "first step"),
        (_shade(steps - 1, steps)[0], "last step"),
        (KEPT, "clean, for the cache"),
        (WAITING, "standing still"),
        (DECODING, "decoding"),
    ]
    for at, (fill, what) in enumerate(kinds):
        x = LEFT + 150 * at
        yield f'<rect x="{x}" y="30" width="12" height="12" fill="{fill}"/>'
        yield f'<text x="{x + 17}" y="40" fill="dimgray">{what}</text>'


def _axis(stop: float, height: int) -> Iterator[str]:
    """Lines at round seconds."""
    scale = (WIDTH - LEFT - 12) / stop
    digit = 10.0 ** len(str(int(stop))) if stop >= 1 else 1.0
    while digit * 5 > stop:
        digit /= 10
    every = next(digit * factor for factor in (1, 2, 5, 10) if stop / (digit * factor) <= 12)
    for at in range(int(stop / every + 1e-9) + 1):
        x = LEFT + at * every * scale
        yield (
            f'<line x1="{x:.2f}" y1="{TOP - 8}" x2="{x:.2f}" y2="{height - BOTTOM + 4}" '
            'stroke="gainsboro"/>'
        )
        yield (
            f'<text x="{x:.2f}" y="{height - 12}" text-anchor="middle" fill="dimgray">'
            f"{at * every:g} s</text>"
        )
