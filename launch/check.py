"""`longtake check`: would a run work here, and how well are its workers connected?"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from longtake.launch.children import Children
from longtake.launch.crew import WorkerLost, crew, dismiss, passing_children
from longtake.launch.draft import Draft
from longtake.launch.interrupt import Interrupt
from longtake.launch.order import Order
from longtake.launch.preflight import Survey, Unfit, describe_bytes, preflight, recall_survey
from longtake.launch.surroundings import Surroundings
from longtake.parallel.preflight import Links, PairSpeed, find_slow, measure_links
from longtake.parallel.store import LocalStore
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue

logger = logging.getLogger(__name__)

EXIT_IMPOSSIBLE = 2
ANY_PROMPT = Cue(0.0, "a red circle standing still on a gray background")
ROWS = 56  # of the table of links: all those of 8 workers


@dataclass(frozen=True)
class Report:
    """A run that can be composed, and what was found out about it. `links` is None for one worker,
    and where it can't be."""

    draft: Draft
    survey: Survey
    links: Links | None

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        draft, links = self.draft, self.links
        return {
            "model": draft.config.name,
            "request": asdict(draft.request),
            "strategy": draft.settings.strategy.kind,
            "dtype": draft.settings.dtype,
            "degrees": asdict(draft.degrees),
            "why": draft.why,
            "decode": asdict(draft.decode),
            "workers": [asdict(profile) for profile in self.survey.profiles],
            "links": None if links is None else asdict(links),
        }


def check_run(draft: Draft, around: Surroundings | None, children: Children) -> Report:
    """Start or meet the workers of a run, and find out about them; no weight is loaded.

    `children` are those that are started here.

    Raises:
        WorkerLost: one died, hangs, or can't compose the run on its host.
    """
    try:
        if draft.degrees.world > 1:
            return Report(draft, *_meet(draft, around, children))
        return Report(draft, preflight(LocalStore(), 0, draft, draft.device), None)
    except Unfit as error:
        return Report(draft, error.survey, None)


def _meet(draft: Draft, around: Surroundings | None, children: Children) -> tuple[Survey, Links]:
    with crew(Order(draft, threads=1, check=True), around, children) as mesh:
        links = measure_links(mesh)
        survey = recall_survey(mesh.store, draft.degrees.world)
    hosts = [profile.host for profile in survey.profiles]
    for pair in find_slow(links.pairs, hosts):
        ends = (pair.source, hosts[pair.source], pair.target, hosts[pair.target])
        logger.warning(
            "the link from worker %d (host %s) to worker %d (host %s) is far slower than others "
            "like it: %.3g MB/s",
            *ends,
            pair.megabytes,
        )
    return survey, links


def tell_check(compose: Callable[[], Draft], around: Surroundings | None, as_json: bool) -> int:
    """Check a run and tell of it; returns the exit code of the process.

    The first Ctrl-C or SIGTERM stops the check cleanly, the second ends the process at once.
    """
    draft: Draft | None = None
    report: Report | None = None
    with _collected_warnings() as warnings:
        try:
            with passing_children() as children:
                interrupt = Interrupt(_stop, _promise, children.kill)
                try:
                    with interrupt:
                        draft = compose()
                        report = check_run(draft, around, children)
                except KeyboardInterrupt:
                    sys.stderr.write("stopped: the check was not finished\n")
                    return interrupt.exit_code
            problems = list(report.survey.problems)
        except (UserError, WorkerLost) as error:
            problems = [str(error)]
        finally:
            if around is not None and around.world > 1 and draft is None:
                dismiss(around)
    if as_json:
        found = {} if report is None else report.to_dict()
        told = {"ok": not problems, "problems": problems, "warnings": warnings, **found}
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        if report is not None:
            _show(report)
        for warning in warnings:
            sys.stderr.write(f"warning: {warning}\n")
    for problem in problems:
        sys.stderr.write(f"error: {problem}\n")
    return EXIT_IMPOSSIBLE if problems else 0


def _stop() -> None:
    raise KeyboardInterrupt


def _promise() -> None:
    sys.stderr.write("warning: stopping the check; once more to stop at once\n")


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Those of the package, as they come."""
    told: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    package, collector = logging.getLogger("longtake"), Collector(logging.WARNING)
    package.addHandler(collector)
    try:
        yield told
    finally:
        package.removeHandler(collector)


def _show(report: Report) -> None:
    """All of it but problems and warnings, on stdout, as wide as the terminal."""
    width = shutil.get_terminal_size(fallback=(160, 24)).columns
    console = Console(file=sys.stdout, width=width, color_system=None, highlight=False)
    draft, links = report.draft, report.links
    request = draft.request
    length = "an endless stream" if request.seconds is None else f"{request.seconds:g} s"
    console.print(
        f"{length} of {request.width}x{request.height} at {request.fps} fps by {draft.config.name} "
        f"({draft.settings.strategy.kind}) in {draft.settings.dtype}: {draft.degrees.describe()}"
        f"{f' ({draft.why})' if draft.why else ''}{_decoded_by(draft)}",
        markup=False,
    )
    console.print(_workers_table(report.survey))
    console.print(_versions(report.survey))
    if links is not None:
        console.print(_links_table(links))
        console.print(f"all at once: {links.together:.3g} MB/s into each worker")
    console.print("the run can't start" if report.survey.problems else "the run can start")


def _decoded_by(draft: Draft) -> str:
    return f", decoded by {draft.decode.describe()}" if draft.degrees.world > 1 else ""


def _workers_table(survey: Survey) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("worker", "host", "device"):
        table.add_column(name, overflow="fold")
    for name in ("weights", "cache and activations", "decoding", "needed in all", "free"):
        table.add_column(name, justify="right")
    for rank, profile in enumerate(survey.profiles):
        need = profile.need
        amounts = (need.weights, need.run, need.decode, need.total, profile.free)
        table.add_row(str(rank), profile.host, profile.device, *map(describe_bytes, amounts))
    return table


def _versions(survey: Survey) -> str:
    """What all workers have in common; warnings and problems tell the rest."""
    first = survey.profiles[0].versions
    same = [
        f"{name} {value}"
        for name, value in first.items()
        if all(profile.versions[name] == value for profile in survey.profiles)
    ]
    where = " everywhere" if len(survey.profiles) > 1 else ""
    return f"{', '.join(same)}{where}"


def _links_table(links: Links) -> Table:
    def speed(pair: PairSpeed) -> float:
        return pair.megabytes

    pairs = list(links.pairs)
    caption = None
    if len(pairs) > ROWS:
        caption = f"the {ROWS} slowest of {len(pairs)}; --json tells all"
        pairs = sorted(pairs, key=speed)[:ROWS]
    table = Table(box=box.SIMPLE, pad_edge=False, caption=caption, caption_justify="left")
    for name in ("link", "MB/s", "microseconds"):
        table.add_column(name, justify="right")
    for pair in pairs:
        route = f"{pair.source} to {pair.target}"
        table.add_row(route, f"{pair.megabytes:.0f}", f"{pair.microseconds:.0f}")
    return table
