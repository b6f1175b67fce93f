"""Frames as they come: the same ones as in the file, with prompts that change on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.launch.api import generate, resume, stream
from longtake.launch.crew import WorkerLost
from longtake.scheduler.errors import UserError

PROMPT = "a large red circle bouncing around slowly on a gray background"
OTHER_PROMPT = "a small blue square standing still on a pink background"
SMALL: dict[str, Any] = {"steps": 1, "settings": ["strategy.window=9"], "seed": 5}

ReadBlocks = Callable[[Path], dict[str, str]]


def test_stream_is_the_video(tmp_path: Path, whole_run: Path, read_blocks: ReadBlocks) -> None:
    request = json.loads((whole_run / "manifest.json").read_text())["request"]
    cues = [(cue["at"], cue["text"]) for cue in request["cues"]]
    with stream(
        cues,
        seconds=request["seconds"],
        seed=request["seed"],
        steps=2,
        settings=["strategy.window=9"],
        run_dir=tmp_path / "run",
    ) as frames:
        shown = list(frames)
    assert frames.fps == 16
    assert len(shown) == 64
    assert {(frame.shape, frame.dtype) for frame in shown} == {((64, 64, 3), np.dtype("uint8"))}
    assert read_blocks(tmp_path / "run") == read_blocks(whole_run)
    assert list(frames) == []
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "finished"


def test_endless_stream_stays_a_few_blocks_ahead(tmp_path: Path) -> None:
    threads = threading.active_count()
    blocks: list[int] = []
    with stream(PROMPT, **SMALL, on_progress=lambda p: blocks.append(p.block)) as frames:
        assert len(list(islice(frames, 30))) == 30
        taken_block = 2
        settled = -1
        while settled != max(blocks):  # until nothing moves, for nobody takes frames
            settled = max(blocks)
            time.sleep(0.3)
        assert taken_block <= settled <= taken_block + 10
        assert len(list(islice(frames, 30))) == 30
    assert next(frames, None) is None
    assert threading.active_count() == threads


def test_switch_holds_from_the_next_block(tmp_path: Path, read_blocks: ReadBlocks) -> None:
    run_dir = tmp_path / "run"
    with stream(PROMPT, seconds=6, **SMALL, run_dir=run_dir) as frames:
        next(frames)
        with pytest.raises(UserError, match="the prompt is empty"):
            frames.switch(" ")
        at = frames.switch(OTHER_PROMPT)
        shown = list(frames)
        with pytest.raises(UserError, match="the last block has begun"):
            frames.switch(PROMPT)
    assert len(shown) == 95
    (event,) = map(json.loads, (run_dir / "events.jsonl").read_text().splitlines())
    block = event["block"]
    assert event["text"] == OTHER_PROMPT and 0 < block < 9
    assert at == pytest.approx((1 + (3 * block - 1) * 4) / 16)
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert [cue["text"] for cue in manifest["cues"]] == [PROMPT, OTHER_PROMPT]
    plain = generate(PROMPT, seconds=6, **SMALL, out=tmp_path / "plain.mp4")
    switched, unswitched = read_blocks(run_dir), read_blocks(plain.run_dir)
    same = [switched[name] == unswitched[name] for name in unswitched]
    assert same == [number < block for number in range(9)]


def test_switched_stream_can_be_finished_as_a_file(tmp_path: Path, read_blocks: ReadBlocks) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with stream(PROMPT, seconds=6, **SMALL, run_dir=cut) as frames:
        next(frames)
        at = frames.switch(OTHER_PROMPT)
        next(frames)
    assert 0 < len(read_blocks(cut)) < 9  # closed before the end
    with pytest.raises(UserError, match="say where to with --out"):
        resume(cut)
    result = resume(cut, out=tmp_path / "video.mp4")
    assert result.finished and result.frames == 96
    cues = [(0.0, PROMPT), (at, OTHER_PROMPT)]
    with stream(cues, seconds=6, **SMALL, run_dir=whole) as frames:
        assert len(list(frames)) == 96
    assert read_blocks(cut) == read_blocks(whole)


def test_trouble_reaches_the_one_who_takes_frames(tmp_path: Path) -> None:
    with stream(PROMPT, seconds=6, **SMALL, run_dir=tmp_path / "run") as frames:
        next(frames)
        (tmp_path / "run" / "blocks").rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="cannot write"):
            list(frames)
        assert list(frames) == []


def workers_of_this_process() -> list[int]:
    """Processes of workers that it has started, and not yet buried."""
    told = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    found = [int(child) for children in told for child in children]
    words = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in found}
    return [child for child in found if b"longtake.launch.worker" in words[child]]


@pytest.mark.slow
def test_workers_make_the_same_stream_and_end_with_it() -> None:
    with stream(PROMPT, **SMALL, workers=2) as frames:
        shown = list(islice(frames, 20))
        at = frames.switch(OTHER_PROMPT)
        shown += islice(frames, round(at * 16))  # beyond where it changes
        assert len(workers_of_this_process()) == 1
    assert workers_of_this_process() == []
    with stream([(0.0, PROMPT), (at, OTHER_PROMPT)], **SMALL) as frames:
        alone = np.stack(list(islice(frames, len(shown))))
    difference = np.abs(np.stack(shown).astype(int) - alone)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


@pytest.mark.slow
def test_a_lost_worker_reaches_the_one_who_takes_frames() -> None:
    """Here the stream is made from frames, which rank 0 alone is given."""
    camera = (np.full((32, 32, 3), number % 256, np.uint8) for number in count())
    made_of: dict[str, Any] = {"strategy": "stream", "steps": 2, "size": "32x32"}
    settings = ["parallel.timeout=20"]
    frames = stream(PROMPT, **made_of, input_video=camera, settings=settings, workers=2)
    assert len(list(islice(frames, 30))) == 30
    (worker,) = workers_of_this_process()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(WorkerLost, match=rf"worker 1 .* process {worker}\) .* killed by signal 9"):
        list(frames)
    assert next(frames, None) is None and workers_of_this_process() == []


def test_a_stream_that_is_forgotten_ends() -> None:
    threads = threading.active_count()
    frames = stream(PROMPT, **SMALL)
    next(frames)
    assert threading.active_count() > threads
    del frames
    assert threading.active_count() == threads


def test_refusals_come_before_anything_is_made(tmp_path: Path) -> None:
    refusals: dict[str, dict[str, Any]] = {
        "can't stream": {"strategy": "bidirectional"},
        "an endless stream needs a window": {"settings": ["strategy.window=null"]},
        "device 'tpu' is not there": {"device": "tpu"},
    }
    for words, arguments in refusals.items():
        with pytest.raises(UserError, match=words):
            stream(PROMPT, run_dir=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()
