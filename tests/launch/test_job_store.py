"""The store of jobs: what was accepted survives, and only the last group of workers may write."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from longtake.launch.job_store import JobStore, OldEpoch
from longtake.launch.jobs import Ask, Job, NoSuchJob, Status, new_id
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.queue_state import Option


def make_job(owner: str = "anna") -> Job:
    return Job(
        id=new_id(),
        owner=owner,
        ask=Ask(prompt=((0.0, "a red circle"), (2.0, "a blue square")), settings=("a.b=1",)),
        config={"seed": 3},
        folder="/videos/one",
        created_at=12.5,
        width=64,
        height=64,
        fps=16,
        total_frames=64,
        blocks=6,
        options=(Option(Degrees(ring=2), 3.5, 1e9),),
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with JobStore(tmp_path / "jobs.sqlite", clock=lambda: 99.0) as store:
        yield store


def test_jobs_survive_the_process(tmp_path: Path) -> None:
    job = make_job()
    with JobStore(tmp_path / "jobs.sqlite") as store:
        store.add(job)
        store.update(job.id, status=Status.IN_PROGRESS, new_epoch=1, devices=("cpu0",))
    with JobStore(tmp_path / "jobs.sqlite") as store:
        [kept] = store.unfinished()
    assert kept.epoch == 1 and kept.status is Status.IN_PROGRESS and kept.devices == ("cpu0",)
    assert kept.ask == job.ask and kept.config == job.config and kept.seconds == 4
    assert kept.options == job.options


def test_only_the_last_epoch_may_write(store: JobStore) -> None:
    job = make_job()
    store.add(job)
    store.update(job.id, new_epoch=1)
    store.update(job.id, epoch=1, blocks_done=2)
    store.update(job.id, new_epoch=2)
    with pytest.raises(OldEpoch):
        store.update(job.id, epoch=1, event="completed", status=Status.COMPLETED)
    assert store.get(job.id).status is Status.QUEUED
    assert [event.kind for event in store.events(job.id)] == ["created"]  # all or nothing


def test_pages_hold_every_job_once(store: JobStore) -> None:
    jobs = [make_job("anna" if n % 2 else "bert") for n in range(7)]
    for job in jobs:
        store.add(job)
    pages, after = [], None
    while page := store.list(after=after, limit=3):
        pages.append([job.id for job in page])
        after = page[-1].id
    assert [id_ for page in pages for id_ in page] == [job.id for job in reversed(jobs)]
    own = store.list(owner="anna", newest_first=False)
    assert [job.id for job in own] == [job.id for job in jobs[1::2]]
    with pytest.raises(NoSuchJob):
        store.list(owner="anna", after=jobs[0].id)


def test_events_and_switches_are_kept_until_the_job_is_deleted(store: JobStore) -> None:
    job = make_job()
    store.add(job)
    first, second = store.add_switch(job.id, "one"), store.add_switch(job.id, "two")
    assert (first.number, second.number) == (0, 1)
    store.settle_switch(job.id, first.number, 1.5)
    assert store.open_switches(job.id) == [second]
    created, switched = store.events(job.id)
    assert (created.kind, created.at) == ("created", 99.0)
    assert switched.facts == {"number": 0, "second": 1.5}
    assert store.events(job.id, since=created.number) == [switched]
    store.delete(job.id)
    assert store.events(job.id) == [] and store.open_switches(job.id) == []
    with pytest.raises(NoSuchJob):
        store.get(job.id)


def test_a_second_process_is_refused(store: JobStore, tmp_path: Path) -> None:
    store.add(make_job())
    with pytest.raises(UserError, match="another process serves its jobs"):
        JobStore(tmp_path / "jobs.sqlite")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, whatever it is called\n" * 50)
    with pytest.raises(UserError, match="no job store, or damaged"):
        JobStore(tmp_path / "text")
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version=7")
    newer.close()
    with pytest.raises(UserError, match="has version 7, this longtake reads 1"):
        JobStore(tmp_path / "newer")
