"""Where a run reads and writes: the video, its frames as pictures, and the run directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.runtime.hold import Hold, is_lock
from longtake.runtime.journal import states
from longtake.runtime.video import Mp4Writer, PngWriter, Tee, VideoWriter, check_output
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Request

_RUN_FILES = ("manifest.json", "journal.jsonl", "events.jsonl")


@dataclass(frozen=True)
class Places:
    """`run_dir` is kept when the run is over; `frames` is None where no pictures are wanted."""

    video: Path
    run_dir: Path
    frames: Path | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what can't be written, before any work is spent on it.

        Raises:
            UserError: something is there already and may not be replaced, or can't be written.
        """
        if not self.overwrite and self.video.is_file():
            raise UserError(f"{self.video} exists; choose another name, or replace it with --force")
        check_output(self.video, self.overwrite)
        if self.frames is not None:
            _check_frames(self.frames, self.overwrite)

    def open(self, request: Request) -> VideoWriter:
        """Start the files; raises UserError if that can't be done."""
        video = Mp4Writer(
            self.video,
            fps=request.fps,
            height=request.height,
            width=request.width,
            overwrite=self.overwrite,
        )
        if self.frames is None:
            return video
        try:
            return Tee([video, PngWriter(self.frames, overwrite=self.overwrite)])
        except UserError:
            video.abort()
            raise

    def to_dict(self) -> dict[str, Any]:
        """For the manifest: paths as seen from the run directory, so that all may be moved."""
        return {
            "video": os.path.relpath(self.video, self.run_dir),
            "frames": None if self.frames is None else os.path.relpath(self.frames, self.run_dir),
            "overwrite": self.overwrite,
        }

    @classmethod
    def from_dict(cls, run_dir: Path, stored: dict[str, Any]) -> Places:
        """What `to_dict` told."""
        paths = {
            key: None if stored[key] is None else Path(os.path.normpath(run_dir / stored[key]))
            for key in ("video", "frames")
        }
        assert paths["video"] is not None
        return cls(paths["video"], run_dir, paths["frames"], stored["overwrite"])


def read_places(
    out: str | Path, run_dir: str | Path | None, frames: str | Path | None, overwrite: bool
) -> Places:
    """Where to write; the run directory is beside the video if none is given."""
    video = Path(out)
    return Places(
        video=video,
        run_dir=default_run_dir(video) if run_dir is None else Path(run_dir),
        frames=None if frames is None else Path(frames),
        overwrite=overwrite,
    )


def default_run_dir(video: Path) -> Path:
    """The run directory of a video: its name with `.run`, beside it."""
    return video.with_suffix(".run")


def _check_frames(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --frames needs a folder")
    if folder.is_dir():
        old = sum(path.stem.isdigit() for path in folder.glob("*.png"))
        if old and not overwrite:
            raise UserError(
                f"{folder} already holds {old} frames; choose another, or replace them with --force"
            )
    elif not folder.parent.is_dir():
        raise UserError(f"cannot write {folder}: there is no folder {folder.parent}")


def check_run_dir(run_dir: Path, overwrite: bool) -> None:
    """Refuse a run directory that can't be started in.

    Raises:
        UserError: it holds a run (without `overwrite`) or something else, or can't be written.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file; the run directory must be a folder")
    holds_run = any((run_dir / name).exists() for name in _RUN_FILES)
    if holds_run and not overwrite:
        raise UserError(
            f"{run_dir} already holds a run: go on with `longtake resume {run_dir}`, or start anew "
            "with --force"
        )
    if holds_run:
        Hold(run_dir).close()  # nobody is at work in it
    if run_dir.is_dir() and not holds_run and not all(map(_is_remnant, run_dir.iterdir())):
        raise UserError(f"{run_dir} is no run directory and not empty; choose another --run-dir")
    there = next(place for place in (run_dir, *run_dir.absolute().parents) if place.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"cannot write {run_dir}: {error.strerror}") from error


def _is_remnant(path: Path) -> bool:
    """Whether a kill before the manifest was there may have left it."""
    return is_lock(path) or path.suffix == ".part"


def remove_run(run_dir: Path) -> None:
    """Remove a run and, if nothing else is in it, its directory.

    Raises:
        UserError: another process is at work in it.
    """
    if not run_dir.is_dir():
        return
    with closing(Hold(run_dir)) as hold:
        for folder in ("blocks", "workers"):
            shutil.rmtree(run_dir / folder, ignore_errors=True)
        for name in _RUN_FILES:
            (run_dir / name).unlink(missing_ok=True)
        for state in states(run_dir):
            state.unlink(missing_ok=True)
        hold.remove()
    if not any(run_dir.iterdir()):
        run_dir.rmdir()
