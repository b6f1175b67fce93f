"""What `longtake models`, `longtake strategies` and `longtake eval` show to people."""

from __future__ import annotations

import io
import shutil
from dataclasses import fields

from rich import box
from rich.console import Console
from rich.table import Table

from longtake.launch.catalogue import catalogue
from longtake.launch.strategy_list import strategies
from longtake.runtime import world
from longtake.runtime.evaluate import Report


def models_table() -> str:
    """All models, and the sentences that the one that ships with Longtake knows."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("model", "native size", "state"):
        table.add_column(column, overflow="fold")
    for entry in catalogue():
        model = entry.settings
        size = f"{model.width}x{model.height}, {model.fps} fps"
        state = f"ready: {entry.folder}" if entry.problem is None else entry.problem
        table.add_row(model.name, size, state)
    return f"{_text(table)}\n\n{_grammar()}"


def strategies_table() -> str:
    """All strategies, and what a label and a degree mean."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("strategy", no_wrap=True)
    for column in ("what it does", "label", "degrees", "source"):
        table.add_column(column, overflow="fold")
    for listed in strategies():
        table.add_row(listed.name, listed.about, listed.label, listed.degrees, listed.source)
    return (
        f"{_text(table)}\n\n"
        "A label says how a strategy relates to all frames made jointly: exact, or lossy, which "
        "is another computation.\nDegrees are what `parallel.*` can split it by; the model's heads "
        "and layers set limits of their own, and clip is\nfor a minute of tinyworld. `--set "
        "strategy.KEY=VALUE` changes what a strategy has to set; configs/strategy shows it."
    )


def _grammar() -> str:
    return (
        "tinyworld knows prompts of this form, words in brackets may be left out:\n"
        "  a [SIZE] COLOR SHAPE MOTION [SPEED] on a BACKGROUND background\n"
        f"  SIZE: {', '.join(world.RADII)}\n"
        f"  COLOR: {', '.join(world.COLORS)}\n"
        f"  SHAPE: {', '.join(world.SHAPES)}\n"
        f"  MOTION: {', '.join(world.MOTIONS)}\n"
        f"  SPEED: {', '.join(world.SPEEDS)}\n"
        f"  BACKGROUND: {', '.join(world.BACKGROUNDS)}"
    )


def report_table(report: Report) -> str:
    """All that was measured of the video as a whole."""
    table = Table(box=box.SIMPLE, pad_edge=False, show_header=False)
    for field in fields(report):
        value = getattr(report, field.name)
        if field.name != "per_second" and value not in (None, ()):
            table.add_row(field.name.replace("_", " "), _number(value))
    return _text(table)


def _number(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_number, value))
    return f"{value:.4g}" if isinstance(value, float) else "never" if value is None else str(value)


def _text(table: Table) -> str:
    """The table as wide as the terminal, or unbroken where there is none."""
    out = io.StringIO()
    width = shutil.get_terminal_size(fallback=(160, 24)).columns
    Console(file=out, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())
