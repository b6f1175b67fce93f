"""What is on disk so that a killed run goes on: finished blocks, the manifest, and events.

A file in a run directory is whole or not there, and a block counts only once its line in the
journal is durable; so a kill at any moment costs the block in the making and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longtake.runtime.closable import Closable
from longtake.runtime.durable import disk_errors, replace_file, sync
from longtake.runtime.hold import Hold
from longtake.runtime.line_file import LineFile, parse
from longtake.scheduler.errors import UserError

logger = logging.getLogger(__name__)

FORMAT = 1
FORMAT_KEY = "journal_format"
TENSOR = "latents"


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """The value as JSON gives it back, so that what was written and what is read compare equal."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


class Journal(Closable):
    """The blocks, manifest and events of one run; one process at a time holds its directory.

    Writing raises `Fenced` once it has gone over to a later epoch. What was on its way into the
    directory at that moment still may arrive there, but it is not read: lines and names tell epochs
    apart.
    """

    def __init__(self, run_dir: Path, hold: Hold, manifest: dict[str, Any]) -> None:
        """Use `create` or `open`."""
        self.run_dir = run_dir
        self._hold = hold
        self._manifest = manifest
        blocks = run_dir / "blocks"
        blocks.mkdir(exist_ok=True)
        for part in (*run_dir.glob("*.part"), *blocks.glob("*.part")):  # half-written at a kill
            part.unlink()
        self._suffix = f"-{hold.epoch}" if hold.epoch else ""
        self._state = self._inherit_state()
        self._lines = LineFile(run_dir / "journal.jsonl", hold.epoch)
        self._event_lines = LineFile(run_dir / "events.jsonl", hold.epoch)
        self._blocks = self._read_blocks()
        self._events = self._read_events()

    @classmethod
    def create(cls, run_dir: Path, manifest: dict[str, Any], epoch: int | None = None) -> Journal:
        """Start a journal in a new or empty directory; the manifest must be JSON.

        `epoch` is of `Hold`.

        Raises:
            UserError: the directory holds a journal, is in use, or cannot be written.
        """
        manifest = _plain(manifest)
        with disk_errors(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
            hold = Hold(run_dir, epoch)
        try:
            if any((run_dir / name).exists() for name in ("manifest.json", "journal.jsonl")):
                raise UserError(
                    f"{run_dir} already holds a run: resume it or choose another directory"
                )
            with disk_errors(run_dir):
                sync(run_dir.parent)
                _write_manifest(run_dir, manifest)
                return cls(run_dir, hold, manifest)
        except BaseException:
            hold.close()
            raise

    @classmethod
    def open(
        cls, run_dir: Path, expect: dict[str, Any] | None = None, epoch: int | None = None
    ) -> Journal:
        """Open the journal of a run to go on with it.

        Args:
            run_dir: the directory that `create` made.
            expect: keys of the manifest with the values that they must have.
            epoch: of `Hold`.

        Raises:
            UserError: not a run directory, of another format version, damaged, in use, or a run
                of another request than expected.
        """
        with disk_errors(run_dir):
            if not (run_dir / "manifest.json").is_file():
                raise UserError(f"{run_dir} is not a run directory: it holds no manifest.json")
            hold = Hold(run_dir, epoch)
        try:
            manifest = _read_manifest(run_dir)
            for key, value in _plain(expect or {}).items():
                if manifest.get(key) != value:
                    raise UserError(
                        f"{run_dir} is the journal of another request: {key} is {value!r} here, "
                        f"{manifest.get(key)!r} there"
                    )
            with disk_errors(run_dir):
                return cls(run_dir, hold, manifest)
        except BaseException:
            hold.close()
            raise

    @property
    def manifest(self) -> dict[str, Any]:
        """A copy of the manifest."""
        return _plain(self._manifest)

    def update_manifest(self, **changes: Any) -> None:
        """Change keys of the manifest, all or none. Raises UserError when the disk refuses."""
        manifest = {**self._manifest, **_plain(changes)}
        self._hold.check()
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
        name = f"blocks/{block:06d}{self._suffix}.safetensors"
        path = self.run_dir / name
        tensor = latents.detach().cpu().contiguous()
        data = safetensors.torch.save({TENSOR: tensor}, metadata={"block": str(block)})
        record = {
            "block": block,
            "file": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
        self._hold.check()
        with disk_errors(path):
            replace_file(path, data)
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
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save(kept, metadata={"tick": str(tick)})
        self._hold.check()
        with disk_errors(self._state):
            replace_file(self._state, data)

    def read_state(self) -> tuple[int, dict[str, Tensor]] | None:
        """The tick and the tensors of the latest state; None, with a warning if it is damaged."""
        path = self._state
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
        self._hold.check()
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
        self._hold.close()

    def _inherit_state(self) -> Path:
        """Where this epoch keeps its state; it begins with that of the one before it."""
        own = self.run_dir / f"state{self._suffix}.safetensors"
        for other in states(self.run_dir):
            if other != own:
                if not own.exists():
                    replace_file(own, other.read_bytes())
                other.unlink(missing_ok=True)
        return own

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


def states(run_dir: Path) -> list[Path]:
    """The files of a run directory that keep states, the latest epoch's first."""
    return sorted(run_dir.glob("state*.safetensors"), key=_epoch, reverse=True)


def _epoch(state: Path) -> int:
    return int(state.stem.partition("-")[2] or 0)


def _is_record(record: dict[str, Any]) -> bool:
    kinds = {"block": int, "file": str, "sha256": str, "bytes": int}
    return all(isinstance(record.get(key), kind) for key, kind in kinds.items())


def _write_manifest(run_dir: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps({FORMAT_KEY: FORMAT, **manifest}, indent=2)
    replace_file(run_dir / "manifest.json", text.encode() + b"\n")


def _read_manifest(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "manifest.json"
    try:
        manifest = parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if manifest is None or FORMAT_KEY not in manifest:
        raise UserError(f"{path} is damaged: it is not the manifest of a run")
    version = manifest.pop(FORMAT_KEY)
    if version != FORMAT:
        raise UserError(f"{path} has format {version}, this version of longtake reads {FORMAT}")
    return manifest
