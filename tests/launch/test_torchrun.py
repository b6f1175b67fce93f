"""Workers that somebody else started: torchrun itself, or processes with its variables."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is exported
from typer.testing import Result

import longtake
from longtake.launch.api import generate
from longtake.launch.crew import meeting_of
from longtake.launch.surroundings import Surroundings
from longtake.parallel.mesh import connect

PROMPT = "a large red circle bouncing around slowly on a gray background"
TORCHRUN = (sys.executable, "-P", "-m", "torch.distributed.run", "--standalone")
PATIENCE = 240.0  # for what takes some seconds where nothing else runs

End = tuple[int, str, str]  # exit code, stdout and stderr
Ranks = Callable[..., tuple[End, End]]


@pytest.fixture
def folder(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of all processes, each of which has one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Path.cwd()


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = (*TORCHRUN, "--nproc-per-node", "2", "-m", "longtake", *words)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def latents(run_dir: Path) -> torch.Tensor:
    files = sorted((run_dir / "blocks").glob("*.safetensors"))
    return torch.cat([load_file(path)["latents"] for path in files], dim=2)


@pytest.mark.slow
def test_torchrun_makes_the_video_of_one_worker(ranks: Ranks, folder: Path) -> None:
    generate(PROMPT, seconds=1, steps=2, out="one.mp4")
    done = torchrun("generate", PROMPT, "--seconds", "1", "--steps", "2", "--out", "two.mp4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("two.mp4: 16 frames") and done.stdout.count("\n") == 1
    one, two = latents(folder / "one.run"), latents(folder / "two.run")
    assert (two - one).norm() <= 2e-5 * one.norm()
    assert not (folder / "two.run" / "workers").exists()  # their output is torchrun's to keep

    again, other = ranks("resume", "two.run")  # there is nothing to do; rank 1 doesn't wait for it
    assert again[:2] == (0, "two.mp4 was finished before\n") and "warning" not in again[2]
    assert other == (0, "", "")


@pytest.mark.slow
def test_variables_alone_make_a_world(ranks: Ranks, folder: Path) -> None:
    words = ("generate", PROMPT, "--seconds", "1", "--steps", "1")
    first, second = ranks(*words, fresh={})
    assert first[0] == 0 and first[1].startswith("video.mp4: 16 frames"), first
    assert second == (0, "", "")


def test_mistake_is_told_once_and_all_end(ranks: Ranks) -> None:
    first, second = ranks("generate", "", "--seconds", "1")
    assert first == (2, "", "error: the prompt is empty; say what the video should show\n")
    assert second == (0, "", "")  # so that it is rank 0 whom the launcher calls the cause


def test_run_keeps_its_number_of_workers(ranks: Ranks, folder: Path) -> None:
    """A run of one worker, stopped at once, that two are to go on with."""

    class Enough(Exception):
        pass

    def stop(progress: object) -> None:
        raise Enough

    with pytest.raises(Enough):
        generate(PROMPT, seconds=1, on_progress=stop)
    first, second = ranks("resume", "video.run")
    assert first[0] == 2 and second == (0, "", "")
    assert first[2] == (
        "error: this run is for one worker, 1 in all, but torchrun started 2; its bits depend on "
        "that number\n"
    )


@pytest.mark.slow
def test_host_that_lacks_the_weights_is_named(ranks: Ranks, folder: Path) -> None:
    """Rank 1 runs a copy of the package that came without them."""
    copy = folder / "elsewhere" / "longtake"
    copy.mkdir(parents=True)
    assert longtake.__file__ is not None
    for part in Path(longtake.__file__).parent.iterdir():
        if part.name != "models":
            (copy / part.name).symlink_to(part.resolve())
    (copy / "models").mkdir()
    words = ("generate", PROMPT, "--seconds", "1")
    first, second = ranks(*words, fresh={"PYTHONPATH": str(copy.parent)})
    assert first[0] == 3 and second[0] == 2, (first, second)
    host = re.escape(socket.gethostname())
    assert re.search(
        rf"^error: worker 1 \(host {host}, process \d+\) failed at \w+: UserError: .*tinyworld.*; "
        r"0 of 2 blocks are kept; go on with: longtake resume video\.run$",
        first[2],
        re.MULTILINE,
    )
    assert "tinyworld" in second[2] and "Traceback" not in first[2] + second[2]


def test_attempts_of_torchrun_share_no_entries() -> None:
    """Its agent keeps the table while the workers are started again."""
    table = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = table.port
    first = Surroundings("torchrun", 0, 2, 0, 2, "127.0.0.1", port, listen=False, attempt="0")
    connect(meeting_of(first)).set("order", "old")
    assert connect(meeting_of(replace(first, rank=1, local_rank=1))).get("order") == "old"
    assert not connect(meeting_of(replace(first, attempt="1"))).has("order")
