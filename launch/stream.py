"""Frames as they are made, for a program that shows or sends them."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch

from longtake.launch.crew import begin, crew, passing_children
from longtake.launch.devices import share_cores
from longtake.launch.draft import Draft
from longtake.launch.engine import OnProgress, load_first_share, make_engine
from longtake.launch.live import make_live
from longtake.launch.manifest import ended
from longtake.launch.order import Order
from longtake.launch.places import check_run_dir
from longtake.launch.run_journal import begin_journal, change_prompt
from longtake.parallel.mesh import Mesh, alone
from longtake.runtime.closable import Closable
from longtake.runtime.engine import Engine
from longtake.runtime.journal import Journal
from longtake.runtime.live import Live
from longtake.runtime.model import Model
from longtake.runtime.source import Frame
from longtake.scheduler.pacing import LiveReport
from longtake.scheduler.schedule import Schedule

logger = logging.getLogger(__name__)


class Stream(Iterator[Frame], Closable):
    """Iterate for frames, (H, W, 3) uint8 RGB, in order; leave the `with` block to end it.

    Frames are made in the background, a few blocks ahead of the one who takes them and no further,
    so memory stays bounded however slow that is. A stream that is forgotten ends too.
    """

    def __init__(
        self,
        draft: Draft,
        model: Model,
        journal: Journal | None,
        on_progress: OnProgress,
        frames: Iterable[Frame] | None,
        live: Live | None,
        mesh: Mesh,
        end: ExitStack,
    ) -> None:
        """What is in `end` is left when all is done, and stays there if this fails."""
        self._draft, self._journal, self._live = draft, journal, live
        self._schedule = draft.schedule()
        self._ready: deque[Frame] = deque()
        self._open = True
        pieces = _Pieces()
        engine = make_engine(
            draft,
            model,
            self._schedule,
            pieces,
            journal,
            on_progress,
            mesh,
            frames=frames,
            live=live,
        )
        self._making = _Making(engine, self._schedule, journal, pieces, end)
        self._forget = weakref.finalize(self, self._making.abandon)

    @property
    def fps(self) -> int:
        """Frames per second at which to show the frames."""
        return self._draft.request.fps

    @property
    def live(self) -> LiveReport | None:
        """How a live stream has gone so far; None of any other."""
        return None if self._live is None else self._live.report()

    def __next__(self) -> Frame:
        """The next frame; waits until it is there.

        Raises:
            StopIteration: the video is over, or the stream was closed.
            UserError: the run failed; see `Engine.run`.
            WorkerLost: one of several workers died or hangs.
        """
        while not self._ready:
            if not self._open:
                raise StopIteration
            piece = self._making.pieces.take()
            if piece is None:
                self._end()
            else:
                self._ready.extend(piece)
        return self._ready.popleft()

    def switch(self, prompt: str) -> float:
        """Change the prompt from the next block on that has not begun.

        Returns:
            From which second of the video on it holds.

        Raises:
            UserError: the prompt is empty, or the last block has begun.
        """
        return change_prompt(self._draft, self._schedule, self._journal, prompt)[1]

    def close(self) -> None:
        """Stop after the block at work; frames that were not taken are dropped."""
        if self._open:
            self._ready.clear()
            self._making.stop()
            self._end()

    def _end(self) -> None:
        self._open = False
        self._forget.detach()
        self._making.join()


def open_stream(
    draft: Draft, frames: Iterable[Frame] | None, run_dir: Path | None, on_progress: OnProgress
) -> Stream:
    """Start the workers of a stream, load their model, and begin; `frames` are its input, None for
    that of the draft.

    Raises:
        UserError: it can't be made, or not be kept there.
        WorkerLost: a worker did not come up.
    """
    live, several = make_live(draft, frames is not None), draft.degrees.world > 1
    if run_dir is not None:
        check_run_dir(run_dir, overwrite=False)
    share_cores(draft.device, draft.degrees.world)
    with ExitStack() as end:
        mesh = alone(draft.device)
        if several:
            order = Order(draft, torch.get_num_threads(), given=frames is not None)
            children = end.enter_context(passing_children())
            mesh = end.enter_context(crew(order, None, children))
        model = load_first_share(draft)
        if several:
            begin(mesh, draft.settings.parallel.timeout)
        journal = None
        if run_dir is not None:
            journal = begin_journal(draft, run_dir, None)
            end.callback(journal.close)
        return Stream(draft, model, journal, on_progress, frames, live, mesh, end)


class _Pieces:
    """Frames on their way from the engine to the one who takes them; a single piece waits."""

    def __init__(self) -> None:
        self._piece: Frame | None = None
        self._over = self._unwanted = False
        self._changed = threading.Condition()

    def write(self, frames: Frame) -> None:
        """Hand on frames, (n, H, W, 3); waits for the one who takes them."""
        with self._changed:
            self._changed.wait_for(lambda: self._piece is None or self._unwanted)
            self._piece = frames
            self._changed.notify_all()

    def take(self) -> Frame | None:
        """The next ones, once they are there; None: there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._piece is not None or self._over)
            piece, self._piece = self._piece, None
            self._changed.notify_all()
            return piece

    def finish(self) -> None:
        """No more will come."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def drop(self) -> None:
        """Nobody will take any more."""
        with self._changed:
            self._unwanted = True
            self._changed.notify_all()


class _Making:
    """The thread that makes a stream's frames. It doesn't know the stream, which may go."""

    def __init__(
        self,
        engine: Engine,
        schedule: Schedule,
        journal: Journal | None,
        pieces: _Pieces,
        end: ExitStack,
    ) -> None:
        self.pieces = pieces
        self._engine, self._schedule, self._journal = engine, schedule, journal
        self._end = end.pop_all()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="stream", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the block at work; frames are dropped."""
        self._engine.stop()
        self.pieces.drop()

    def join(self) -> None:
        """Wait for the end, and raise what went wrong."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End, for nobody; called in any thread, this one's too."""
        self.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if self._error is not None:
            logger.warning("a stream that nobody took any more failed: %s", self._error)

    def _work(self) -> None:
        try:
            with self._end:
                self._run()
        except BaseException as error:  # noqa: BLE001 - raised to the one who takes the frames
            self._error = error
        finally:
            self.pieces.finish()

    def _run(self) -> None:
        outcome = self._engine.run()
        if self._journal is not None:
            finished = self._schedule.blocks is not None and outcome.finished
            cues = self._schedule.script.cues
            self._journal.update_manifest(**ended(self._journal.manifest, outcome, cues, finished))
