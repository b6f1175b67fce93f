"""Plans and predictions for people."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from longtake.launch.plan import Question
from longtake.scheduler.planner import Advice, Choice, Rejected, Wish
from longtake.scheduler.prediction import Prediction

REASONS = 16  # why plans are impossible, at most; --json tells all


def advice_text(question: Question, advice: Advice, wish: Wish) -> str:
    """The best plans as a table, then why others are impossible."""
    request, cluster = question.request, question.cluster
    parts = [
        f"{request.seconds:g} s of {request.width}x{request.height} at {request.fps} fps by "
        f"{question.settings.model.name} in {question.steps} steps, on {cluster.name} "
        f"({len(cluster.devices)} devices): {advice.fitting} plans fit, {advice.simulated} are "
        "simulated"
    ]
    if advice.best:
        parts += [f"best for {wish.goal}:", _table(advice.best)]
    else:
        parts.append("no plan is possible")
    if advice.rejected:
        by_reason: dict[str, list[Rejected]] = {}
        for rejected in advice.rejected:
            by_reason.setdefault(rejected.reason, []).append(rejected)
        reasons = [
            alike[0].describe() if len(alike) == 1 else f"{alike[0].reason} (in {_names(alike)})"
            for alike in by_reason.values()
        ]
        more = len(reasons) - REASONS
        parts += ["not possible, or not wanted:", *(f"  {line}" for line in reasons[:REASONS])]
        parts += [f"  and for {more} more reasons; --json tells all"] if more > 0 else []
    return "\n".join(parts)


def _names(rejected: Sequence[Rejected]) -> str:
    return ", ".join(dict.fromkeys(each.name for each in rejected))


def _table(choices: Sequence[Choice]) -> str:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("strategy", overflow="fold")
    table.add_column("degrees", overflow="fold")
    columns = ("workers", "seconds", "first frame", "fps", "GiB", "sent", "busy", "Wh", "label")
    for name in columns:
        table.add_column(name, justify="right")
    for choice in choices:
        candidate, found = choice.candidate, choice.prediction
        table.add_row(
            candidate.name,
            candidate.degrees.describe(),
            str(found.workers),
            f"{found.seconds:.4g} s",
            f"{found.first_frame:.3g} s",
            f"{found.fps:.3g}",
            f"{found.peak_memory / 2**30:.1f}",
            bytes_text(found.bytes),
            f"{found.utilisation:.0%}",
            f"{found.joules / 3600:.3g}",
            candidate.strategy.label,
        )
    return as_text(table)


def prediction_text(question: Question, degrees: str, found: Prediction) -> str:
    """All numbers of one simulated run."""
    request, latencies = question.request, found.latencies
    device_seconds = found.seconds * found.workers
    table = Table(box=box.SIMPLE, pad_edge=False, show_header=False)
    rows = {
        "until the last frame": f"{found.seconds:.4g} s, {device_seconds:.4g} GPU-seconds",
        "until the first frame": f"{found.first_frame:.4g} s",
        "frames a second": f"{found.fps:.4g} overall, {found.steady_fps:.4g} in the middle",
        "a block takes": f"{sum(latencies) / len(latencies):.4g} s on average, "
        f"{max(latencies):.4g} s at most ({len(latencies)} blocks)",
        "workers compute": f"{found.utilisation:.1%}",
        "they wait for bytes": f"{found.exposed:.1%}",
        "they wait for work": f"{found.bubble:.1%}",
        "they send": bytes_text(found.bytes),
        "decoding beside": f"{found.decoding:.4g} s",
        "peak memory": f"{found.peak_memory / 2**30:.2f} GiB (worker "
        f"{found.memory.index(found.peak_memory)})",
        "energy": f"{found.joules / 3600:.4g} Wh",
    }
    if found.lost:
        rows["lost with workers"] = f"{found.lost:.4g} s"
    for name, value in rows.items():
        table.add_row(name, value)
    return (
        f"{request.seconds:g} s of {request.width}x{request.height} at {request.fps} fps by "
        f"{question.settings.model.name} ({question.settings.strategy.kind}, {question.steps} "
        f"steps) on {question.cluster.name}: {degrees}\n{as_text(table)}"
    )


def bytes_text(count: float) -> str:
    """Such as `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def as_text(table: Table) -> str:
    """As wide as the terminal, or unbroken where there is none."""
    out = io.StringIO()
    width = shutil.get_terminal_size(fallback=(160, 24)).columns
    Console(file=out, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())
