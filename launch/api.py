"""Longtake from Python: a video file, a stream of frames, or a run to go on with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from longtake.launch.ask import Prompt, Size, read_prompt, read_settings
from longtake.launch.draft import check_input, make_draft
from longtake.launch.engine import OnProgress
from longtake.launch.places import read_places
from longtake.launch.run import Result, Run
from longtake.launch.stream import Stream, open_stream
from longtake.runtime.progress import Progress
from longtake.runtime.source import Frame
from longtake.scheduler.errors import UserError


def _ignore(progress: Progress) -> None:
    pass


def generate(
    prompt: Prompt,
    *,
    seconds: float | None = None,
    out: str | Path = "video.mp4",
    model: str | Path = "tinyworld",
    seed: int | None = None,
    size: Size | None = None,
    fps: int | None = None,
    strategy: str | None = None,
    input_video: str | Path | None = None,
    live: bool | None = None,
    steps: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    plan: str | None = None,
    cluster: str | None = None,
    run_dir: str | Path | None = None,
    frames_dir: str | Path | None = None,
    overwrite: bool = False,
    settings: Sequence[str] = (),
    on_progress: OnProgress = _ignore,
) -> Result:
    """Make a video file.

    What a resume needs stays in a run directory; its `manifest.json` tells how the video was made.

    Args:
        prompt: what to show, or prompts as (second, text), the first at 0 seconds.
        seconds: length; None for the model's own, 60 for models of long videos.
        out: an .mp4 file. While it grows, it plays as `NAME.part.mp4`.
        model: a name out of `longtake models`, or the folder of a Wan 2.1 in diffusers' layout.
        seed: the same seed gives the same video.
        size: "832x480" or (832, 480), width first; None for the model's own.
        fps: frames per second; None for the model's own.
        strategy: causal, bidirectional, or another of `configs/strategy`.
        input_video: a file to make the video from, as long as that; for `strategy="stream"`.
        live: take its frames at their real rate, as a camera gives them, and tell in the manifest
            how late what was made of them came; `latency=2` among the `settings` says when it is.
        steps: denoising steps; for the few-step sampler, spread evenly.
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, float32, bfloat16 or float16.
        workers: processes of this host that share the work; `parallel.ring=2` and other `settings`
            say how, else it is chosen.
        plan: `auto` chooses what should be done soonest, `fit` goes by a rule.
        cluster: what describes the devices, as of `longtake plan`; None: what is found here.
        run_dir: None for the name of the video with `.run`, beside it.
        frames_dir: a folder for every frame as PNG.
        overwrite: replace what is there.
        settings: `key=value` for any key of the configuration.
        on_progress: hears how far the run is, from other threads too, one at a time.

    Raises:
        UserError: what was asked for can't be done; said in one line.
        WorkerLost: one of several workers died or hangs; finished blocks are kept.
    """
    composed = read_settings(
        model=model,
        strategy=strategy,
        steps=steps,
        size=size,
        settings=settings,
        seconds=seconds,
        seed=seed,
        fps=fps,
        device=device,
        dtype=dtype,
        workers=workers,
        plan=plan,
        cluster=cluster,
        input_video=None if input_video is None else str(input_video),
        live=live,
    )
    draft = make_draft(composed, read_prompt(prompt), composed.seconds)
    places = read_places(out, run_dir, frames_dir, overwrite)
    return Run.new(draft, places).execute(on_progress)


def stream(
    prompt: Prompt,
    *,
    seconds: float | None = None,
    model: str | Path = "tinyworld",
    seed: int | None = None,
    size: Size | None = None,
    fps: int | None = None,
    strategy: str | None = None,
    input_video: str | Path | Iterable[Frame] | None = None,
    live: bool | None = None,
    steps: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    plan: str | None = None,
    cluster: str | None = None,
    run_dir: str | Path | None = None,
    settings: Sequence[str] = (),
    on_progress: OnProgress = _ignore,
) -> Stream:
    """Make frames, one after the other, and change the prompt while they come.

    Arguments are those of `generate`, but for: `seconds`, None for a stream without end; `run_dir`,
    a new directory to keep the run in, None to keep nothing. A kept stream of finite length can be
    resumed into a file. `input_video` may also be frames, (H, W, 3) uint8 RGB at `fps` a second;
    the stream ends when they do, and can't be kept. With `live` they are a camera's: what comes
    sooner than at `fps` waits for its time, and `Stream.live` tells how late frames were. Several
    `workers` end with the stream.

    Raises:
        UserError: what was asked for can't be done; said in one line.
        WorkerLost: one of several workers did not come up; later it is the stream that raises it.
    """
    composed = read_settings(
        model=model,
        strategy=strategy,
        steps=steps,
        size=size,
        settings=settings,
        seconds=seconds,
        seed=seed,
        fps=fps,
        device=device,
        dtype=dtype,
        workers=workers,
        plan=plan,
        cluster=cluster,
        input_video=str(input_video) if isinstance(input_video, str | Path) else None,
        live=live,
    )
    if seconds is None and composed.input_video is not None:
        seconds = composed.seconds
    draft = make_draft(composed, read_prompt(prompt), seconds)
    frames = None if isinstance(input_video, str | Path) else input_video
    if frames is not None:
        check_input(draft)
        if run_dir is not None:
            raise UserError("a stream from frames can't be kept; let input_video be a file")
    return open_stream(draft, frames, None if run_dir is None else Path(run_dir), on_progress)


def resume(
    run_dir: str | Path, *, out: str | Path | None = None, on_progress: OnProgress = _ignore
) -> Result:
    """Go on with a run that was stopped or killed; the video is the one it would have been.

    Finished blocks are not made again. `out` is for a run that began as a stream, without a file.

    Raises:
        UserError: there is no such run, it is in use, or its weights are not here any more.
    """
    return Run.kept(Path(run_dir), None if out is None else Path(out)).execute(on_progress)
