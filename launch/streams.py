"""Several streams through one model, from Python: they join and leave while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from longtake.launch.ask import Prompt, Size, read_prompt, read_settings
from longtake.launch.check import ANY_PROMPT
from longtake.launch.devices import share_cores
from longtake.launch.draft import check_input, make_draft
from longtake.launch.input import open_frames
from longtake.launch.live import make_live
from longtake.runtime.closable import Closable
from longtake.runtime.live_batch import LiveBatch
from longtake.runtime.live_stream import LiveStream
from longtake.runtime.model import load_model
from longtake.runtime.source import Frame
from longtake.scheduler.errors import UserError
from longtake.scheduler.strategies.stream import StreamBatch
from longtake.scheduler.streams import Batch


class Streams(Closable):
    """Streams of one model, size and number of steps, made on one device by launches they share.

    Leave the `with` block, or close it, to end them all.
    """

    def __init__(self, seats: int, **asked: Any) -> None:
        """`asked` is of `read_settings`; see `streams`."""
        self._asked = asked
        draft = make_draft(read_settings(**asked), [ANY_PROMPT], None)
        if not isinstance(draft.strategy, StreamBatch):
            kind = draft.settings.strategy.kind
            raise UserError(f"the strategy {kind} can't share launches; legal is stream")
        if draft.degrees.world > 1:
            raise UserError(
                f"streams are made by one worker, got parallel.workers={draft.degrees.world}"
            )
        self._fps, steps = draft.request.fps, len(draft.sampler.timesteps)
        batch = Batch(draft.strategy, draft.request, draft.spec, steps, seats)
        share_cores(draft.device)
        model = load_model(draft.config, draft.device, draft.dtype)
        noise = draft.settings.strategy.noise
        self._batch = LiveBatch(model, batch, draft.sampler, lambda asked: noise(asked.seed))

    def join(
        self,
        prompt: Prompt,
        *,
        seconds: float | None = None,
        seed: int | None = None,
        input_video: str | Path | Iterable[Frame] | None = None,
        live: bool | None = None,
        latency: float | None = None,
    ) -> LiveStream:
        """Begin another stream, which takes part from the next launch on.

        Arguments are those of `longtake.stream`; `latency` is in seconds.

        Raises:
            UserError: what was asked for can't be done; no seat is free, or about to be; or, where
                it is live, it or another stream would be late.
        """
        file = str(input_video) if isinstance(input_video, str | Path) else None
        composed = read_settings(
            **self._asked,
            seconds=seconds,
            seed=seed,
            input_video=file,
            live=live,
            latency=latency,
        )
        if seconds is None and file is not None:
            seconds = composed.seconds
        draft = make_draft(composed, read_prompt(prompt), seconds, warm=True)
        given = None if isinstance(input_video, str | Path) else input_video
        if given is not None:
            check_input(draft)
        clock = make_live(draft, given is not None)
        frames = open_frames(draft, given, clock)
        return self._batch.join(draft.request, frames, draft.settings.strategy.mixing, clock)

    @property
    def fps(self) -> int:
        """Frames per second of all of them."""
        return self._fps

    def launch_seconds(self, streams: int) -> float:
        """How long launches of so many streams have taken at most, of late; 0 if none was."""
        return self._batch.launch_times.seconds(streams)

    def close(self) -> None:
        """End all streams; frames that were not taken are dropped."""
        self._batch.close()


def streams(
    *,
    seats: int = 4,
    model: str | Path = "tinyworld",
    size: Size | None = None,
    fps: int | None = None,
    strategy: str = "stream",
    steps: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    settings: Sequence[str] = (),
) -> Streams:
    """Make room for up to `seats` streams at once, which `Streams.join` begins.

    Each is what it would be alone, to rounding: its prompts, noise, cache and decoder are its own.
    A launch takes as many of them as can all be in time. Arguments are those of `longtake.stream`.

    Raises:
        UserError: what was asked for can't be done; said in one line.
    """
    return Streams(
        seats,
        model=model,
        strategy=strategy,
        steps=steps,
        size=size,
        settings=settings,
        fps=fps,
        device=device,
        dtype=dtype,
    )
