"""A run from the command line: told while it goes, stopped by signals, ended with an exit code."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import diffusers.utils.logging
import transformers.utils.logging

from longtake.launch.comparison import compare
from longtake.launch.crew import WorkerLost, dismiss
from longtake.launch.draft import Draft
from longtake.launch.follow import follow
from longtake.launch.interrupt import Interrupt
from longtake.launch.progress import Display, LogToDisplay
from longtake.launch.run import Result, Run
from longtake.launch.surroundings import Surroundings
from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import Rendezvous
from longtake.scheduler.errors import UserError
from longtake.scheduler.pacing import LiveReport

EXIT_USER = 2
EXIT_LOST = 3


def tell(
    make_run: Callable[[], Run],
    display: Display,
    around: Surroundings | None = None,
    verbose: bool = False,
) -> int:
    """Make a run and execute it; returns the exit code of the process.

    `verbose`: tell how well it was predicted, which is told of a traced run anyway.

    `around` is the world that waits for this process to tell it what to do, even if that is
    nothing.
    """
    run = None
    with warnings_to(display):
        try:
            run = make_run()
            return _execute(run, display, verbose)
        except UserError as error:
            display.end("error", str(error), {})
            return EXIT_USER
        finally:
            if around is not None and around.world > 1 and (run is None or not run.shared):
                dismiss(around)


def join(rendezvous: Rendezvous, local_rank: int) -> int:
    """Take part in rank 0's run; returns the exit code of the process."""
    told = logging.StreamHandler()
    told.setFormatter(logging.Formatter(f"worker {rendezvous.rank}: %(message)s"))
    logging.getLogger("longtake").addHandler(told)
    logging.getLogger("longtake.launch.draft").setLevel(logging.ERROR)  # rank 0 has warned

    def give_up(why: str) -> None:
        sys.stderr.write(f"error: worker {rendezvous.rank}: {why}\n")
        sys.stderr.flush()
        os._exit(EXIT_LOST)  # the main thread hangs, and this worker has nothing to keep

    try:
        follow(rendezvous, local_rank, give_up)
    except (UserError, CommunicationError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USER if isinstance(error, UserError) else EXIT_LOST
    return 0


def quiet_libraries() -> None:
    """Only Longtake speaks: no progress bars and no advice to programmers from the libraries."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    for name in ("diffusers", "torch", "transformers"):
        warnings.filterwarnings("ignore", module=rf"{name}\b")


@contextmanager
def warnings_to(display: Display) -> Iterator[None]:
    """Tell warnings of the package there."""
    logger, handler = logging.getLogger("longtake"), LogToDisplay(display)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _execute(run: Run, display: Display, verbose: bool) -> int:
    start = time.monotonic()
    done_before = run.done
    display.begin(*_beginning(run))

    def heard() -> None:
        if run.at_work:
            display.warn("stopping after this block; once more to stop at once")

    def leave() -> None:
        run.abandon()
        display.end("stopped", *_stopping(run))

    with Interrupt(run.stop, heard, leave) as interrupt:
        try:
            result = run.execute(display.update)
        except KeyboardInterrupt:
            result = None
        except WorkerLost as error:
            _tell_trace(run, display)
            sentence, facts = _stopping(run)
            display.end("error", f"{error}; {sentence}", facts)
            return EXIT_LOST
    _tell_trace(run, display)
    report = None if result is None else result.manifest["runs"][-1].get("live")
    if report is not None and not done_before:
        display.note("live", LiveReport(**report).describe(), report)
    if result is None or not result.finished:
        display.end("stopped", *_stopping(run))
        return interrupt.exit_code
    if verbose or run.trace.traced is not None:
        _tell_prediction(result, display)
    sentence, facts = _ending(run, result, time.monotonic() - start)
    if done_before:
        sentence = f"{run.places.video} was finished before"
    display.end("done", sentence, facts)
    return 0


def _tell_trace(run: Run, display: Display) -> None:
    traced = run.trace.traced
    if traced is not None:
        display.note("trace", traced.describe(), traced.facts())


def _tell_prediction(result: Result, display: Display) -> None:
    last = result.manifest["runs"][-1]
    if (predicted := last.get("predicted")) is None:
        return
    found = compare(predicted, last)
    text = f"predicted by {predicted['by']} for what it took: {found.describe()}"
    display.note("prediction", text, {"by": predicted["by"], **found.to_dict()})


def _beginning(run: Run) -> tuple[str, dict[str, Any]]:
    draft, (kept, blocks) = run.draft, run.blocks
    request = draft.request
    frames, size = request.pixel_frames, f"{request.width}x{request.height}"
    there = f" ({kept} are there)" if kept else ""
    count = "1 block" if blocks == 1 else f"{blocks} blocks"
    sentence = (
        f"{frames} frames of {size} at {request.fps} fps in {count}{there} by "
        f"{draft.config.name} on {draft.device}{_sharing(draft)}; the run is kept in "
        f"{run.places.run_dir}"
    )
    return sentence, {
        "request": asdict(request),
        "model": draft.config.name,
        "strategy": draft.settings.strategy.kind,
        "device": str(draft.device),
        "dtype": draft.settings.dtype,
        "degrees": asdict(draft.degrees),
        "why": draft.why,
        "frames": frames,
        "blocks": blocks,
        "blocks_kept": kept,
        "out": str(run.places.video),
        "run_dir": str(run.places.run_dir),
    }


def _sharing(draft: Draft) -> str:
    """How several workers share the work, and why so."""
    if draft.degrees.world == 1:
        return ""
    return f", shared as {draft.degrees.describe()}{f' ({draft.why})' if draft.why else ''}"


def _stopping(run: Run) -> tuple[str, dict[str, Any]]:
    kept, blocks = run.blocks
    command = f"longtake resume {shlex.quote(str(run.places.run_dir))}"
    facts = {"blocks_kept": kept, "blocks": blocks, "run_dir": str(run.places.run_dir)}
    if not run.begun:
        return "nothing had begun, so nothing is kept", facts
    sentence = f"{kept} of {blocks} blocks are kept; go on with: {command}"
    return sentence, {**facts, "resume": command}


def _ending(run: Run, result: Result, wall: float) -> tuple[str, dict[str, Any]]:
    seconds = result.frames / run.draft.request.fps
    sentence = (
        f"{result.path}: {result.frames} frames, {seconds:g} s of video, made in {wall:.1f} s "
        f"({result.frames / wall:.1f} frames/s); the run is kept in {result.run_dir}"
    )
    last = result.manifest["runs"][-1]
    return sentence, {
        "path": str(result.path),
        "run_dir": str(result.run_dir),
        "frames": result.frames,
        "seconds": seconds,
        "wall_seconds": round(wall, 3),
        "blocks_made": last["blocks_made"],
        "blocks_restored": last["blocks_restored"],
    }
