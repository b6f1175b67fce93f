"""A run that was stopped or killed goes on to the very same video, and denoises no block twice."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from longtake.launch.api import generate, resume
from longtake.launch.ask import read_prompt, read_settings
from longtake.launch.draft import make_draft
from longtake.launch.places import read_places
from longtake.launch.run import Run
from longtake.runtime.progress import Progress
from longtake.scheduler.errors import UserError

SWITCHED = 3  # the block from which the second prompt holds

ReadBlocks = Callable[[Path], dict[str, str]]
ReadJournal = Callable[[Path], list[int]]
ReadVideo = Callable[[Path], tuple[int, float, tuple[int, int]]]


def stopped_run(request: dict[str, Any], out: Path, block: int) -> Path:
    """The directory of a run that was told to stop while it made a block."""
    settings = read_settings(
        model="tinyworld",
        strategy=None,
        size=None,
        steps=request["steps"],
        settings=request["settings"],
        seconds=request["seconds"],
        seed=request["seed"],
    )
    draft = make_draft(settings, read_prompt(request["prompt"]), settings.seconds)
    run = Run.new(draft, read_places(out, None, None, overwrite=False))

    def stop_at(progress: Progress) -> None:
        if progress.block == block:
            run.stop()

    result = run.execute(stop_at)
    assert not result.finished and result.manifest["status"] == "stopped"
    return result.run_dir


@pytest.mark.parametrize("block", [0, 3])
def test_stopped_run_goes_on_to_the_same_bits(
    block: int,
    tmp_path: Path,
    request_of_4s: dict[str, Any],
    whole_run: Path,
    read_blocks: ReadBlocks,
    read_journal: ReadJournal,
    read_video: ReadVideo,
) -> None:
    run_dir = stopped_run(request_of_4s, tmp_path / "video.mp4", block)
    assert read_journal(run_dir) == list(range(block + 1))
    assert not (tmp_path / "video.mp4").exists()
    part, _, _ = read_video(tmp_path / "video.part.mp4")
    assert part == 9 + 12 * block  # what is kept can be seen
    result = resume(run_dir)
    assert result.finished and result.path == tmp_path / "video.mp4"
    assert read_blocks(run_dir) == read_blocks(whole_run)
    assert read_journal(run_dir) == list(range(6))
    assert result.path.read_bytes() == whole_run.with_suffix(".mp4").read_bytes()
    runs = result.manifest["runs"]
    assert [run["blocks_made"] for run in runs] == [block + 1, 5 - block]
    assert [run["blocks_restored"] for run in runs] == [0, block + 1]
    # What is kept is committed again, and the prompt switched again, to fill the cache.
    again = block + 1 + (1 if block >= SWITCHED else 0)
    assert sum(run["evaluations"] for run in runs) == 6 * 3 + 1 + again


def test_moved_run_goes_on(
    tmp_path: Path, request_of_4s: dict[str, Any], whole_run: Path, read_blocks: ReadBlocks
) -> None:
    (tmp_path / "here").mkdir()
    stopped_run(request_of_4s, tmp_path / "here" / "video.mp4", 1)
    shutil.move(tmp_path / "here", tmp_path / "there")
    result = resume(tmp_path / "there" / "video.run")
    assert result.path == tmp_path / "there" / "video.mp4" and result.path.exists()
    assert read_blocks(result.run_dir) == read_blocks(whole_run)


def test_finished_run_is_not_made_again(
    tmp_path: Path, whole_run: Path, read_journal: ReadJournal, read_video: ReadVideo
) -> None:
    shutil.copytree(whole_run.parent, tmp_path / "copy")
    run_dir, video = tmp_path / "copy" / "video.run", tmp_path / "copy" / "video.mp4"
    before = video.stat()
    assert resume(run_dir).finished
    assert video.stat() == before
    video.unlink()  # its blocks are still there
    result = resume(run_dir)
    assert read_video(video)[0] == 64
    assert result.manifest["runs"][-1]["blocks_made"] == 0
    assert len(read_journal(run_dir)) == 6


def test_run_at_work_is_not_disturbed(
    tmp_path: Path, request_of_4s: dict[str, Any], whole_run: Path, read_blocks: ReadBlocks
) -> None:
    out = tmp_path / "video.mp4"
    refusals: list[Progress] = []

    def disturb(progress: Progress) -> None:
        if progress.block == 2 and not refusals:
            with pytest.raises(UserError, match="is in use by another process"):
                resume(tmp_path / "video.run")
            with pytest.raises(UserError, match="is in use by another process"):
                generate(**request_of_4s, out=out, overwrite=True)
            refusals.append(progress)

    generate(**request_of_4s, out=out, on_progress=disturb)
    assert len(refusals) == 1
    assert read_blocks(tmp_path / "video.run") == read_blocks(whole_run)


def test_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path,
    processes: ForkServerContext,
    request_of_4s: dict[str, Any],
    whole_run: Path,
    read_blocks: ReadBlocks,
    read_journal: ReadJournal,
) -> None:
    """Killed at random moments of its life, each time it is resumed; no block is made twice."""
    out = tmp_path / "video.mp4"
    run_dir = out.with_suffix(".run")
    draw = random.Random(3)
    for kill in range(3):
        arguments = {**request_of_4s, "out": out} if kill == 0 else {"run_dir": run_dir}
        target: Callable[..., object] = generate if kill == 0 else resume
        process = processes.Process(target=target, kwargs=arguments)
        process.start()
        # Wait for one more block, then for a random part of what the next one takes.
        while process.is_alive() and len(list(run_dir.glob("blocks/*.safetensors"))) <= kill:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.2))
        process.kill()
        process.join()
        assert read_journal(run_dir)
    resume(run_dir)
    assert read_blocks(run_dir) == read_blocks(whole_run)
    assert sorted(read_journal(run_dir)) == list(range(6))


def test_run_that_is_killed_once_its_video_has_its_name_ends_well(tmp_path: Path) -> None:
    """All is made by then, but for the word of the manifest; and no other file is replaced."""
    prompt = "a red circle standing still on a black background"
    made = generate(prompt, seconds=1.0, steps=1, out=tmp_path / "video.mp4")
    manifest = made.run_dir / "manifest.json"
    told = json.loads(manifest.read_text("utf-8"))
    video = made.path.read_bytes()

    manifest.write_text(json.dumps(told | {"status": "closing"}), "utf-8")
    again = resume(made.run_dir)
    assert again.finished and made.path.read_bytes() == video

    manifest.write_text(json.dumps(told | {"status": "running"}), "utf-8")
    with pytest.raises(UserError, match="exists"):
        resume(made.run_dir)
