"""Where jobs survive the process that serves them: one SQLite file, one writer."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from longtake.launch.jobs import Event, Job, NoSuchJob, PromptSwitch, Status
from longtake.runtime.closable import Closable
from longtake.scheduler.errors import UserError

VERSION = 1
SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, status TEXT NOT NULL, epoch INTEGER NOT NULL,
    job TEXT NOT NULL
);
CREATE INDEX jobs_of ON jobs (owner, number);
CREATE INDEX jobs_at ON jobs (status);
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, facts TEXT NOT NULL
);
CREATE INDEX events_of ON events (job, number);
CREATE TABLE switches (
    job TEXT NOT NULL, number INTEGER NOT NULL, text TEXT NOT NULL, open INTEGER NOT NULL,
    PRIMARY KEY (job, number)
);
"""


class OldEpoch(RuntimeError):
    """Whoever writes speaks for a group of workers that a job was taken from."""


class StoreBroken(RuntimeError):
    """The disk refuses; nothing was changed, and another time it may go well."""


class JobStore(Closable):
    """Every change is one transaction, durable when the call returns. Any thread may call.

    What changes something raises `StoreBroken` when the disk refuses.

    The file is held as long as the store is open, so that no second process can believe that the
    jobs are its own; where locks hold across hosts, it may lie on a shared file system.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the file, or make it.

        Raises:
            UserError: another process holds it, it can't be written, or it is of another version.
        """
        self._clock, self._lock = clock, threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
                self._database.execute(f"PRAGMA {pragma}")
            self._settle_schema(path)
        except (sqlite3.OperationalError, StoreBroken) as error:
            held = "locked" in str(error)
            reason = "another process serves its jobs" if held else str(error)
            raise UserError(f"the job store {path} can't be opened: {reason}") from error
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path} is no job store, or damaged: {error}") from error
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error

    def _settle_schema(self, path: Path) -> None:
        with self._transaction():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in SCHEMA.split(";"):
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA user_version={VERSION}")
        if version not in (0, VERSION):
            self.close()
            raise UserError(f"{path} has version {version}, this longtake reads {VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield
                self._database.execute("COMMIT")
            except BaseException as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise StoreBroken(f"the job store can't be written: {error}") from error
                raise

    def add(self, job: Job) -> None:
        """Keep a new job."""
        with self._transaction():
            self._database.execute(
                "INSERT INTO jobs (id, owner, status, epoch, job) VALUES (?, ?, ?, ?, ?)",
                (job.id, job.owner, job.status, job.epoch, json.dumps(job.to_dict())),
            )
            self._tell(job.id, "created", {})

    def get(self, id_: str) -> Job:
        """A job; raises `NoSuchJob`."""
        with self._lock:
            row = self._database.execute("SELECT job FROM jobs WHERE id = ?", (id_,)).fetchone()
        if row is None:
            raise NoSuchJob(f"there is no video {id_!r}")
        return Job.from_dict(json.loads(row[0]))

    def list(
        self,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = True,
    ) -> Sequence[Job]:
        """Jobs by age, of one owner or of all; `after` is the id of the last one on another page.

        Raises:
            NoSuchJob: of `after`.
        """
        where, values = ["1"], list[Any]()
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        if after is not None:
            where.append(f"number {'<' if newest_first else '>'} ?")
            values.append(self._number(after, owner))
        order = "DESC" if newest_first else "ASC"
        with self._lock:
            rows = self._database.execute(
                f"SELECT job FROM jobs WHERE {' AND '.join(where)} ORDER BY number {order} LIMIT ?",
                (*values, limit),
            ).fetchall()
        return [Job.from_dict(json.loads(job)) for (job,) in rows]

    def unfinished(self) -> Sequence[Job]:
        """All jobs that have not ended, the oldest first."""
        open_ = [status for status in Status if not status.ended]
        marks = ", ".join("?" * len(open_))
        with self._lock:
            rows = self._database.execute(
                f"SELECT job FROM jobs WHERE status IN ({marks}) ORDER BY number", open_
            ).fetchall()
        return [Job.from_dict(json.loads(job)) for (job,) in rows]

    def ended_before(self, instant: float) -> Sequence[str]:
        """Ids of jobs that have ended by then."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id FROM jobs WHERE json_extract(job, '$.ended_at') < ?", (instant,)
            ).fetchall()
        return [id_ for (id_,) in rows]

    def update(
        self,
        id_: str,
        epoch: int | None = None,
        event: str | None = None,
        facts: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Job:
        """Change fields of a job, and tell of it by an `event`; returns what it has become.

        Args:
            id_: of the job.
            epoch: of the group of workers that the change comes from; None: it comes from none.
            event: its kind, None: nothing is told.
            facts: of the event.
            changes: `new_epoch` gives the job to another group; all others are fields of `Job`.

        Raises:
            NoSuchJob: it was deleted.
            OldEpoch: the job is another group's by now.
        """
        with self._transaction():
            before = self.get(id_)
            if epoch is not None and epoch != before.epoch:
                raise OldEpoch(f"{id_} is at epoch {before.epoch}, a group of epoch {epoch} wrote")
            if "new_epoch" in changes:
                changes["epoch"] = changes.pop("new_epoch")
            after = replace(before, **changes)
            self._database.execute(
                "UPDATE jobs SET status = ?, epoch = ?, job = ? WHERE id = ?",
                (after.status, after.epoch, json.dumps(after.to_dict()), id_),
            )
            if event is not None:
                self._tell(id_, event, facts or {})
        return after

    def delete(self, id_: str) -> None:
        """Forget a job and all that was told of it."""
        with self._transaction():
            for table, key in (("jobs", "id"), ("events", "job"), ("switches", "job")):
                self._database.execute(f"DELETE FROM {table} WHERE {key} = ?", (id_,))

    def tell(self, id_: str, kind: str, facts: Mapping[str, Any]) -> None:
        """Add an event."""
        with self._transaction():
            self._tell(id_, kind, facts)

    def events(self, id_: str, since: int = 0) -> Sequence[Event]:
        """What happened to a job after the event of that number, in order."""
        with self._lock:
            rows = self._database.execute(
                "SELECT number, job, at, kind, facts FROM events WHERE job = ? AND number > ? "
                "ORDER BY number",
                (id_, since),
            ).fetchall()
        return [Event(n, job, at, kind, json.loads(facts)) for n, job, at, kind, facts in rows]

    def add_switch(self, id_: str, text: str) -> PromptSwitch:
        """Keep a change of prompt until it is made."""
        with self._transaction():
            (number,) = self._database.execute(
                "SELECT count(*) FROM switches WHERE job = ?", (id_,)
            ).fetchone()
            self._database.execute("INSERT INTO switches VALUES (?, ?, ?, 1)", (id_, number, text))
        return PromptSwitch(id_, number, text)

    def settle_switch(self, id_: str, number: int, second: float | None) -> None:
        """A change of prompt has been made, and holds from that second on; None: it can't be."""
        with self._transaction():
            self._database.execute(
                "UPDATE switches SET open = 0 WHERE job = ? AND number = ?", (id_, number)
            )
            self._tell(id_, "switched", {"number": number, "second": second})

    def open_switches(self, id_: str) -> Sequence[PromptSwitch]:
        """Changes of prompt that are still to be made, in order."""
        with self._lock:
            rows = self._database.execute(
                "SELECT job, number, text FROM switches WHERE job = ? AND open ORDER BY number",
                (id_,),
            ).fetchall()
        return [PromptSwitch(*row) for row in rows]

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def _number(self, id_: str, owner: str | None) -> int:
        with self._lock:
            row = self._database.execute(
                "SELECT number, owner FROM jobs WHERE id = ?", (id_,)
            ).fetchone()
        if row is None or owner not in (None, row[1]):
            raise NoSuchJob(f"there is no video {id_!r}")
        return int(row[0])

    def _tell(self, id_: str, kind: str, facts: Mapping[str, Any]) -> None:
        self._database.execute(
            "INSERT INTO events (job, at, kind, facts) VALUES (?, ?, ?, ?)",
            (id_, self._clock(), kind, json.dumps(dict(facts))),
        )
