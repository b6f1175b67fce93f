"""What is on disk so that a killed run goes on: finished blocks, the manifest, and events.

A file in a run directory is whole or not there, and a block counts only once its line in the
journal is durable; so a kill at any moment costs the block in the making and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longtake.runtime.durable import disk_errors, sync
from longtake.scheduler.errors import UserError

logger = logging.getLogger(__name__)

FORMAT = 1
FORMAT_KEY = "journal_format"
TENSOR = "latents"
STATE = "state.safetensors"


def _write_all(file: io.FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


def _replace_file(path: Path, data: bytes) -> None:
    """Give a file new content, durably: a kill or a full disk leaves the old content or the new."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb", buffering=0) as file:
            _write_all(file, data)
        os.replace(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


class _LineFile:
    """A file of JSON lines to append to; a line is durable when `append` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b", buffering=0)
        self._cut_torn_line()
        sync(path.parent)

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        data = self._file.readall()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            logger.warning("%s ends in a torn line, which is cut off", self._path)
            self._file.truncate(whole)

    def read(self) -> list[dict[str, Any] | None]:
        """All lines in order; None stands for a damaged one."""
        self._file.seek(0)
        return [_parse(line) for line in self._file.readall().splitlines()]

    def append(self, line: dict[str, Any]) -> None:
        end = os.fstat(self._file.fileno()).st_size
        try:
            _write_all(self._file, json.dumps(line).encode() + b"\n")
        except BaseException:  # an interrupt too: half a line would spoil the next one
            self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # neither JSON nor UTF-8
        return None
    return value if isinstance(value, dict) else None


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """The value as JSON gives it back, so that what was written and what is read compare equal."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


class Journal:
    """The blocks, manifest and events of one run; one process at a time holds its directory."""

    def __init__(self, run_dir: Path, lock: io.FileIO, manifest: dict[str, Any]) -> None:
        """Use `create` or `open`."""
        self.run_dir = run_dir
        self._lock = lock
        self._manifest = manifest
        blocks = run_dir / "blocks"
        blocks.mkdir(exist_ok=True)
        for part in (*run_dir.glob("*.part"), *blocks.glob("*.part")):  # half-written at a kill
            part.unlink()
        self._lines = _LineFile(run_dir / "journal.jsonl")
        self._event_lines = _LineFile(run_dir / "events.jsonl")
        self._blocks = self._read_blocks()
        self._events = self._read_events()

    @classmethod
    def create(cls, run_dir: Path, manifest: dict[str, Any]) -> Journal:
        """Start a journal in a new or empty directory; the manifest must be JSON.

        Raises:
            UserError: the directory holds a journal, is in use, or cannot be written.
        """
        manifest = _plain(manifest)
        with disk_errors(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
            lock = _lock(run_dir)
        try:
            if any((run_dir / name).exists() for name in ("manifest.json", "journal.jsonl")):
                raise UserError(
                    f"{run_dir} already holds a run: resume it or choose another directory"
                )
            with disk_errors(run_dir):
                sync(run_dir.parent)
                _write_manifest(run_dir, manifest)
                return cls(run_dir, lock, manifest)
        except BaseException:
            lock.close()
            raise

    @classmethod
    def open(cls, run_dir: Path, expect: dict[str, Any] | None = None) -> Journal:
        """Open the journal of a run to go on with it.

        Args:
            run_dir: the directory that `create` made.
            expect: keys of the manifest with the values that they must have.

        Raises:
            UserError: not a run directory, of another format version, damaged, in use, or a run
                of another request than expected.
        """
        with disk_errors(run_dir):
            if not (run_dir / "manifest.json").is_file():
                raise UserError(f"{run_dir} is not a run directory: it holds no manifest.json")
            lock = _lock(run_dir)
        try:
            manifest = _read_manifest(run_dir)
            for key, value in _plain(expect or {}).items():
                if manifest.get(key) != value:
                    raise UserError(
                        f"{run_dir} is the journal of another request: {key} is {value!r} here, "
                        f"{manifest.get(key)!r} there"
                    )
            with disk_errors(run_dir):
                return cls(run_dir, lock, manifest)
        except BaseException:
            lock.close()
            raise

    @property
    def manifest(self) -> dict[str, Any]:
        """A copy of the manifest."""
        return _plain(self._manifest)

    def update_manifest(self, **changes: Any) -> None:
        """Change keys of the manifest, all or none. Raises UserError when the disk refuses."""
        manifest = {**self._manifest, **_plain(changes)}
        with disk_errors(self.run_dir):
            _write_manifest(self.run_dir, manifest)
        self._manifest = manifest

    def blocks(self) -> set[int]:
        """The recorded blocks."""
        return set(self._blocks)

    def write(self, block: int, latents: Tensor) -> None:
        """Make a block's latents durable; any shape, dtype and device.

        Raises:
            UserError: the disk is full or failed; nothing of this block stays, others do.
        """
        name = f"blocks/{block:06d}.safetensors"
        path = self.run_dir / name
        tensor = latents.detach().cpu().contiguous()
        data = safetensors.torch.save({TENSOR: tensor}, metadata={"block": str(block)})
        record = {
            "block": block,
            "file": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
        with disk_errors(path):
            _replace_file(path, data)
            try:
                self._lines.append(record)
            except OSError:
                path.unlink()
                self._blocks.pop(block, None)
                raise
        self._blocks[block] = record

    def read(self, block: int) -> Tensor | None:
        """The latents of a block on the CPU; None when it is not recorded or its file is damaged.

        A damaged block is named in a warning and no longer recorded: it has to be made again.
        """
        record = self._blocks.get(block)
        if record is None:
            return None
        path = self.run_dir / record["file"]
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == record["sha256"]:
                return safetensors.torch.load(data)[TENSOR]
            trouble = "its bytes are not those that were written"
        except (OSError, SafetensorError, KeyError) as error:
            trouble = str(error)
        logger.warning("block %d is made again, %s is damaged: %s", block, path, trouble)
        del self._blocks[block]
        return None

    def write_state(self, tick: int, tensors: dict[str, Tensor]) -> None:
        """Keep what a run needs to go on after the launch at `tick`; replaces an older state.

        Raises:
            UserError: the disk is full or failed; the older state stays.
        """
        path = self.run_dir / STATE
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save(kept, metadata={"tick": str(tick)})
        with disk_errors(path):
            _replace_file(path, data)

    def read_state(self) -> tuple[int, dict[str, Tensor]] | None:
        """The tick and the tensors of the latest state; None, with a warning if it is damaged."""
        path = self.run_dir / STATE
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return int(file.metadata()["tick"]), tensors
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            logger.warning("the video is made again from its start, %s is damaged: %s", path, error)
            return None

    def record_event(self, event: dict[str, Any]) -> None:
        """Append an event, such as a prompt switch, durably. It must be JSON.

        Raises:
            UserError: the disk is full or failed; the event is not recorded.
        """
        event = _plain(event)
        with disk_errors(self.run_dir / "events.jsonl"):
            self._event_lines.append(event)
        self._events.append(event)

    def events(self) -> list[dict[str, Any]]:
        """All events in the order in which they were recorded."""
        return [_plain(event) for event in self._events]

    def close(self) -> None:
        """Let go of the run directory."""
        self._lines.close()
        self._event_lines.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read_blocks(self) -> dict[int, dict[str, Any]]:
        blocks = {}
        for number, record in enumerate(self._lines.read(), start=1):
            if record is None or not _is_record(record):
                logger.warning(
                    "line %d of %s/journal.jsonl is damaged: its block is made again",
                    number,
                    self.run_dir,
                )
            else:
                blocks[record["block"]] = record
        return blocks

    def _read_events(self) -> list[dict[str, Any]]:
        events = []
        for number, event in enumerate(self._event_lines.read(), start=1):
            if event is None:  # without it the rest of the video would be another one
                raise UserError(f"line {number} of {self.run_dir}/events.jsonl is damaged")
            events.append(event)
        return events


def _is_record(record: dict[str, Any]) -> bool:
    kinds = {"block": int, "file": str, "sha256": str, "bytes": int}
    return all(isinstance(record.get(key), kind) for key, kind in kinds.items())


def _lock(run_dir: Path) -> io.FileIO:
    """Hold the run directory until the file is closed or the process ends, however it ends."""
    lock = (run_dir / "lock").open("wb", buffering=0)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise UserError(f"{run_dir} is in use by another process") from error
    return lock


def _write_manifest(run_dir: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps({FORMAT_KEY: FORMAT, **manifest}, indent=2)
    _replace_file(run_dir / "manifest.json", text.encode() + b"\n")


def _read_manifest(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "manifest.json"
    try:
        manifest = _parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if manifest is None or FORMAT_KEY not in manifest:
        raise UserError(f"{path} is damaged: it is not the manifest of a run")
    version = manifest.pop(FORMAT_KEY)
    if version != FORMAT:
        raise UserError(f"{path} has format {version}, this version of longtake reads {FORMAT}")
    return manifest
