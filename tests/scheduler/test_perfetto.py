"""The file is what trace viewers take: the Trace Event Format, with nothing that they misread."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.scheduler.errors import UserError
from longtake.scheduler.perfetto import Process, write_trace
from longtake.scheduler.timeline import Action, Activity

Event = dict[str, Any]


def written(path: Path, processes: list[Process], origin: float = 0.0) -> list[Event]:
    write_trace(path, processes, origin)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert set(document) == {"displayTimeUnit", "traceEvents"}
    events: list[Event] = document["traceEvents"]
    return events


def slices(events: list[Event]) -> list[Event]:
    return [event for event in events if event["ph"] == "X"]


def labels(events: list[Event], name: str) -> dict[tuple[int, int], Any]:
    return {
        (event["pid"], event["tid"]): next(iter(event["args"].values()))
        for event in events
        if event["ph"] == "M" and event["name"] == name
    }


def test_one_process_per_worker_one_track_per_activity(tmp_path: Path) -> None:
    actions = [
        Action(0, Activity.COMPUTE, "denoise", 100.0, 100.5),
        Action(0, Activity.TRANSFER, "keys to 1", 100.25, 100.75, bytes=1_000_000_000),
        Action(0, Activity.WAIT, "keys", 100.5, 100.75),
    ]
    other = [Action(1, Activity.COMPUTE, "denoise", 100.1, 100.6)]
    events = written(
        tmp_path / "trace.json", [Process(0, "ann", actions), Process(1, "bob", other, 7)], 100.0
    )
    assert set(labels(events, "process_name").values()) == {"worker 0 (ann)", "worker 1 (bob)"}
    assert labels(events, "process_labels") == {(2, 0): "7 earlier actions dropped"}
    threads = labels(events, "thread_name")
    assert sorted(threads.values()) == ["compute", "compute", "transfer", "wait"]
    by_name = {(event["pid"], event["name"]): event for event in slices(events)}
    transfer = by_name[1, "keys to 1"]
    assert (transfer["ts"], transfer["dur"]) == (250_000, 500_000)
    assert transfer["args"] == {"bytes": 1_000_000_000, "GB/s": 2.0}
    assert threads[1, transfer["tid"]] == transfer["cat"] == "transfer"
    assert by_name[2, "denoise"]["ts"] == pytest.approx(100_000, abs=1)
    assert by_name[1, "denoise"]["args"] == {}


@st.composite
def any_actions(draw: st.DrawFn) -> list[Action]:
    drawn = draw(
        st.lists(
            st.tuples(
                st.sampled_from(Activity),
                st.text(max_size=5),
                st.floats(0, 2e-4),
                st.floats(0, 1e-4),
                st.integers(0, 10**12),
            ),
            max_size=30,
        )
    )
    return [
        Action(0, kind, name, 5e5 + start, 5e5 + start + length, moved)
        for kind, name, start, length, moved in drawn
    ]


@given(any_actions())
@settings(max_examples=60)
def test_every_action_is_there_and_no_track_is_misread(
    tmp_path_factory: pytest.TempPathFactory, actions: list[Action]
) -> None:
    path = tmp_path_factory.mktemp("traces") / "trace.json"
    events = written(path, [Process(0, "host", actions)], origin=5e5)
    shown = slices(events)
    assert sorted(event["name"] for event in shown) == sorted(a.name for a in actions)
    tracks: dict[int, list[Event]] = defaultdict(list)
    names = labels(events, "thread_name")
    for event in shown:
        assert isinstance(event["ts"], int) and event["ts"] >= 0
        assert isinstance(event["dur"], int) and event["dur"] >= 0
        assert names[event["pid"], event["tid"]].startswith(event["cat"])
        assert event["args"].get("bytes", 1) > 0
        tracks[event["tid"]].append(event)
    for tid, track in tracks.items():
        running: list[int] = []
        assert [e["ts"] for e in track] == sorted(e["ts"] for e in track)
        for event in track:
            stop = event["ts"] + event["dur"]
            running = [other for other in running if other > event["ts"]]
            assert all(stop <= other for other in running), "overlaps, but is not inside"
            assert not running or not names[1, tid].startswith("transfer")
            running.append(stop)


def test_a_task_and_its_parts_share_a_track_but_transfers_do_not(tmp_path: Path) -> None:
    spans = [(0.0, 1.0), (0.25, 0.5), (0.5, 0.75), (1.0, 1.5)]
    actions = [
        Action(0, kind, str(kind), start, stop)
        for kind in (Activity.COMPUTE, Activity.TRANSFER)
        for start, stop in reversed(spans)
    ]
    names = labels(written(tmp_path / "t.json", [Process(0, "host", actions)]), "thread_name")
    assert sorted(names.values()) == ["compute", "transfer", "transfer 2"]


def test_other_lanes_have_tracks_of_their_own(tmp_path: Path) -> None:
    actions = [
        Action(0, Activity.COMPUTE, "denoise", 0.0, 1.0),
        Action(0, Activity.COMPUTE, "write", 0.0, 1.0, lane="write"),
        Action(0, Activity.COMPUTE, "decode", 0.0, 1.0, lane="decode"),
        Action(0, Activity.WAIT, "neighbours", 1.0, 2.0, lane="decode"),
    ]
    events = written(tmp_path / "t.json", [Process(0, "host", actions)])
    names = labels(events, "thread_name")
    shown = {event["name"]: names[event["pid"], event["tid"]] for event in slices(events)}
    assert shown == {
        "denoise": "compute",
        "decode": "decode",
        "neighbours": "decode, wait",
        "write": "write",
    }
    order = sorted(labels(events, "thread_sort_index").items(), key=lambda item: item[1])
    assert [names[at] for at, _ in order] == ["compute", "decode", "decode, wait", "write"]


def test_a_trace_of_nothing_is_still_a_trace(tmp_path: Path) -> None:
    assert written(tmp_path / "t.json", []) == []
    assert slices(written(tmp_path / "t.json", [Process(0, "host", [])])) == []


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    written(path, [Process(0, "host", [])])
    before = path.read_bytes()

    def broken() -> Iterator[Process]:
        yield Process(0, "host", [Action(0, Activity.WAIT, "wait", 0.0, 1.0)])
        raise RuntimeError("a worker is gone")

    with pytest.raises(RuntimeError, match="a worker is gone"):
        write_trace(path, broken(), 0.0)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "trace.json", tmp_path):
        with pytest.raises(UserError, match=r"the trace cannot be written to .*: .*irectory"):
            write_trace(path, [], 0.0)
    assert list(tmp_path.iterdir()) == []
