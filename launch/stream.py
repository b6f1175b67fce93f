"""Frames as they are made, for a program that shows or sends them."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from longtake.launch.draft import Draft
from longtake.launch.manifest import ended
from longtake.launch.run import OnProgress, make_engine
from longtake.launch.run_journal import change_prompt
from longtake.runtime.journal import Journal
from longtake.runtime.live import Live
from longtake.runtime.model import Model
from longtake.runtime.source import Frame
from longtake.scheduler.pacing import LiveReport


class Stream(Iterator[Frame]):
    """Iterate for frames, (H, W, 3) uint8 RGB, in order; leave the `with` block to end it.

    Frames are made in the background, a few blocks ahead of the one who takes them and no further,
    so memory stays bounded however slow that is.
    """

    def __init__(
        self,
        draft: Draft,
        model: Model,
        journal: Journal | None,
        on_progress: OnProgress,
        frames: Iterable[Frame] | None = None,
        live: Live | None = None,
    ) -> None:
        self._draft, self._journal = draft, journal
        self._schedule = draft.schedule()
        self._pieces: queue.Queue[Frame | None] = queue.Queue(1)  # None: there will be no more
        self._ready: deque[Frame] = deque()
        self._error: BaseException | None = None
        self._open = True
        self._live = live
        self._engine = make_engine(
            draft, model, self._schedule, self, journal, on_progress, frames=frames, live=live
        )
        self._thread = threading.Thread(target=self._work, name="stream", daemon=True)
        self._thread.start()

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
        """
        while not self._ready:
            if not self._open:
                raise StopIteration
            piece = self._pieces.get()
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
            self._engine.stop()
            self._ready.clear()
            while self._pieces.get() is not None:
                pass
            self._end()

    def write(self, frames: Frame) -> None:
        """For the engine: hand on frames, (n, H, W, 3); waits for the one who takes them."""
        self._pieces.put(frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _work(self) -> None:
        try:
            outcome = self._engine.run()
            if self._journal is not None:
                blocks = self._schedule.blocks
                finished = blocks is not None and outcome.finished
                cues = self._schedule.script.cues
                changes: dict[str, Any] = ended(self._journal.manifest, outcome, cues, finished)
                self._journal.update_manifest(**changes)
        except BaseException as error:  # noqa: BLE001 - raised to the one who takes the frames
            self._error = error
        finally:
            if self._journal is not None:
                self._journal.close()
            self._pieces.put(None)

    def _end(self) -> None:
        self._open = False
        self._thread.join()
        if self._error is not None:
            raise self._error
