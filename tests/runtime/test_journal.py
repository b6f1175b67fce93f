"""A run directory survives kills, damage and full disks."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from longtake.runtime.journal import Journal
from longtake.scheduler.errors import UserError

MANIFEST = {"prompt": "a lighthouse", "seed": 3, "size": [64, 96], "fps": 16}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def small_disk(mount_disk: Callable[[int], Path]) -> Path:
    """A file system of 64 KiB."""
    return mount_disk(64)


def fill(disk: Path, leave: int) -> None:
    """Fill a disk but for some bytes."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(file.tell() - leave)


def latents_of(block: int, dtype: torch.dtype = torch.bfloat16, values: int = 600) -> Tensor:
    generator = torch.Generator().manual_seed(block)
    return torch.randn(1, 4, values // 4, generator=generator).to(dtype)


def same_bits(one: Tensor | None, two: Tensor) -> bool:
    return (
        one is not None
        and (one.dtype, one.shape) == (two.dtype, two.shape)
        and torch.equal(one.view(torch.uint8), two.view(torch.uint8))
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_blocks_come_back_bit_identical(run_dir: Path, dtype: torch.dtype) -> None:
    odd = latents_of(7, dtype)
    odd[0, 0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    with Journal.create(run_dir, MANIFEST) as journal:
        journal.write(0, latents_of(0, dtype))
        journal.write(7, odd)
        journal.write(8, latents_of(8, dtype).transpose(1, 2))
        assert same_bits(journal.read(7), odd)
    with Journal.open(run_dir) as journal:
        assert journal.blocks() == {0, 7, 8}
        assert same_bits(journal.read(0), latents_of(0, dtype))
        assert same_bits(journal.read(7), odd)
        assert same_bits(journal.read(8), latents_of(8, dtype).transpose(1, 2).contiguous())
        assert journal.read(1) is None


def test_what_is_on_disk(run_dir: Path) -> None:
    with Journal.create(run_dir, MANIFEST) as journal:
        journal.write(12, latents_of(12))
    block = run_dir / "blocks" / "000012.safetensors"
    assert files(run_dir) == [
        "blocks/000012.safetensors",
        "events.jsonl",
        "journal.jsonl",
        "lock",
        "manifest.json",
    ]
    with safe_open(block, framework="pt") as stored:
        assert stored.metadata() == {"block": "12"}
    (record,) = map(json.loads, (run_dir / "journal.jsonl").read_text().splitlines())
    assert set(record) == {"block", "file", "sha256", "bytes"}
    assert record["block"] == 12
    assert run_dir / record["file"] == block
    assert record["bytes"] == block.stat().st_size


def test_manifest(run_dir: Path) -> None:
    with Journal.create(run_dir, MANIFEST) as journal:
        assert journal.manifest == MANIFEST
        journal.update_manifest(frames=48, labels=("exact",))
        journal.manifest["seed"] = 99  # a copy
    with Journal.open(run_dir) as journal:
        assert journal.manifest == {**MANIFEST, "frames": 48, "labels": ["exact"]}


def test_events(run_dir: Path) -> None:
    switch = {"kind": "prompt", "tick": 40, "text": "a ship\nat night"}
    with Journal.create(run_dir, MANIFEST) as journal:
        journal.record_event(switch)
        journal.record_event({"kind": "cancel", "tick": 60})
        assert journal.events()[0] == switch
    with Journal.open(run_dir) as journal:
        assert journal.events() == [switch, {"kind": "cancel", "tick": 60}]


def test_a_damaged_event_is_an_error(run_dir: Path) -> None:
    with Journal.create(run_dir, MANIFEST) as journal:
        journal.record_event({"tick": 1})
        journal.record_event({"tick": 2})
    path = run_dir / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"tick": 1}', b'{"tick\x00: 1}'))
    with pytest.raises(UserError, match=r"line 1 of .*events\.jsonl is damaged"):
        Journal.open(run_dir)


def test_create_refuses_a_directory_that_holds_a_run(run_dir: Path) -> None:
    with Journal.create(run_dir, MANIFEST) as journal:
        journal.write(0, latents_of(0))
    with pytest.raises(UserError, match="already holds a run"):
        Journal.create(run_dir, MANIFEST)
    (run_dir / "manifest.json").unlink()  # blocks are worth a refusal, too
    with pytest.raises(UserError, match="already holds a run"):
        Journal.create(run_dir, MANIFEST)


def test_create_goes_on_where_a_kill_left_no_manifest(run_dir: Path) -> None:
    run_dir.mkdir()
    (run_dir / "lock").touch()
    (run_dir / "manifest.json.part").write_text('{"jour')
    with Journal.create(run_dir, MANIFEST) as journal:
        assert journal.blocks() == set()
    assert "manifest.json.part" not in files(run_dir)


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        Journal.open(tmp_path)
    assert files(tmp_path) == []
    with pytest.raises(UserError, match="not a run directory"):
        Journal.open(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        Journal.create(tmp_path / "file", MANIFEST)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b'{"journal_format": 1, "se', "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"[1]", "is damaged"),
        (b'{"seed": 3}', "is damaged"),
        (b'{"journal_format": 2}', "has format 2, this version of longtake reads 1"),
    ],
)
def test_a_manifest_that_cannot_be_used(run_dir: Path, content: bytes, message: str) -> None:
    Journal.create(run_dir, MANIFEST).close()
    (run_dir / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Journal.open(run_dir)
    assert "\n" not in str(caught.value)


def test_a_run_of_another_request_is_refused(run_dir: Path) -> None:
    Journal.create(run_dir, MANIFEST).close()
    Journal.open(run_dir, expect={"fps": 16, "size": (64, 96)}).close()
    with pytest.raises(UserError, match="of another request: seed is 4 here, 3 there"):
        Journal.open(run_dir, expect={"fps": 16, "seed": 4})
    with pytest.raises(UserError, match="of another request: steps is 4 here, None there"):
        Journal.open(run_dir, expect={"steps": 4})


def test_the_lock_keeps_others_out(run_dir: Path) -> None:
    script = f"""
import pathlib
from longtake.runtime.journal import Journal
try:
    Journal.open(pathlib.Path({str(run_dir)!r}))
except ValueError as error:
    print(error)
"""
    with Journal.create(run_dir, MANIFEST):
        with pytest.raises(UserError, match="in use by another process"):
            Journal.open(run_dir)
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
    assert done.stdout == f"{run_dir} is in use by another process\n"
    Journal.open(run_dir).close()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_bytes_are_noticed(
    run_dir: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal.create(run_dir, MANIFEST) as journal:
        for block in range(3):
            journal.write(block, latents_of(block))
    path = run_dir / "blocks" / "000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    if damage == "flip":
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:100])
    else:
        path.unlink()
    with Journal.open(run_dir) as journal, caplog.at_level(logging.WARNING):
        assert journal.blocks() == {0, 1, 2}
        assert journal.read(1) is None
        assert "block 1" in caplog.text
        assert str(path) in caplog.text
        assert journal.blocks() == {0, 2}
        assert same_bits(journal.read(2), latents_of(2))
        journal.write(1, latents_of(1))
    with Journal.open(run_dir) as journal:
        assert same_bits(journal.read(1), latents_of(1))


def test_a_torn_line_is_cut_off(run_dir: Path) -> None:
    with Journal.create(run_dir, MANIFEST) as journal:
        journal.write(0, latents_of(0))
        journal.write(1, latents_of(1))
    path = run_dir / "journal.jsonl"
    whole = path.read_bytes()
    line = whole.splitlines(keepends=True)[1]
    for length in (1, len(line) // 2, len(line) - 1):
        path.write_bytes(whole[: len(whole) - len(line) + length])
        with Journal.open(run_dir) as journal:
            assert journal.blocks() == {0}
            journal.write(1, latents_of(1))
        assert path.read_bytes() == whole


def test_a_damaged_line_costs_its_block_only(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal.create(run_dir, MANIFEST) as journal:
        for block in range(3):
            journal.write(block, latents_of(block))
    path = run_dir / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"block": 1,', b'"blo\xff": 1,'))
    with Journal.open(run_dir) as journal:
        assert journal.blocks() == {0, 2}
    assert "line 2" in caplog.text


KILLED = """
import json, os, pathlib, random, signal, sys, time
import torch
from longtake.runtime.journal import Journal

run_dir, rounds = pathlib.Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)

def work(acknowledge):
    with Journal.open(run_dir) as journal:
        block = max(journal.blocks(), default=-1) + 1
        while True:
            generator = torch.Generator().manual_seed(block)
            dtype = torch.float32 if block % 2 else torch.bfloat16
            journal.write(block, torch.randn(1, 4, 150, generator=generator).to(dtype))
            journal.record_event({"block": block})
            os.write(acknowledge, f"{block} ".encode())
            block += 1

finished = []
for number in range(rounds):
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        work(theirs)
    os.close(theirs)
    first = os.read(ours, 100)  # it writes by now
    time.sleep(random.Random(number).uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    rest = b""
    while piece := os.read(ours, 65536):
        rest += piece
    os.close(ours)
    finished += map(int, (first + rest).split())
print(json.dumps(finished))
"""


def test_kills_lose_no_finished_block(run_dir: Path) -> None:
    """One run, killed and resumed twelve times; a block is finished once `write` has returned."""
    Journal.create(run_dir, MANIFEST).close()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run_dir), "12"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    finished = json.loads(done.stdout)
    assert len(finished) >= 12
    with Journal.open(run_dir) as journal:
        assert journal.blocks() >= set(finished)
        assert {event["block"] for event in journal.events()} >= set(finished)
        for block in journal.blocks():
            dtype = torch.float32 if block % 2 else torch.bfloat16
            assert same_bits(journal.read(block), latents_of(block, dtype))
    assert not [name for name in files(run_dir) if name.endswith(".part")]


def test_a_full_disk_keeps_earlier_blocks(small_disk: Path) -> None:
    run_dir = small_disk / "run"
    with Journal.create(run_dir, MANIFEST) as journal:
        journal.write(0, latents_of(0, values=4000))
        journal.record_event({"tick": 1})
        fill(small_disk, leave=4096)
        before = files(run_dir)
        with pytest.raises(UserError, match="No space left on device") as caught:
            journal.write(1, latents_of(1, values=4000))
        assert "\n" not in str(caught.value)
        assert str(run_dir / "blocks" / "000001.safetensors") in str(caught.value)
        assert files(run_dir) == before
        assert journal.blocks() == {0}
        (small_disk / "filler").unlink()
        journal.write(1, latents_of(1, values=4000))
    with Journal.open(run_dir) as journal:
        assert same_bits(journal.read(0), latents_of(0, values=4000))
        assert same_bits(journal.read(1), latents_of(1, values=4000))


def test_a_disk_that_holds_the_block_but_not_its_line(small_disk: Path) -> None:
    run_dir = small_disk / "run"
    with Journal.create(run_dir, MANIFEST) as journal:
        fill(small_disk, leave=4096)  # a page for the block, none for the journal's first line
        before = files(run_dir)
        with pytest.raises(UserError, match="No space left on device"):
            journal.write(0, latents_of(0))
        with pytest.raises(UserError, match="No space left on device"):
            journal.update_manifest(note="x" * 5000)
        assert files(run_dir) == before
        assert journal.blocks() == set()
        assert journal.manifest == MANIFEST
        (small_disk / "filler").unlink()
        journal.write(0, latents_of(0))
    with Journal.open(run_dir) as journal:
        assert journal.manifest == MANIFEST
        assert same_bits(journal.read(0), latents_of(0))


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_disk_that_fails_while_it_syncs(
    run_dir: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same without the right to mount: the block's file, its folder, or its line fails."""
    with Journal.create(run_dir, MANIFEST) as journal:
        journal.write(0, latents_of(0))
        journal.record_event({"tick": 1})
        calls, sync = iter(range(1, 100)), os.fsync

        def fail(handle: int) -> None:
            if next(calls) == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(UserError, match="finished blocks are kept, make room and resume"):
                journal.write(1, latents_of(1))
        assert journal.blocks() == {0}
        assert not [name for name in files(run_dir) if name.endswith(".part")]
    with Journal.open(run_dir) as journal:
        assert journal.blocks() == {0}
        assert same_bits(journal.read(0), latents_of(0))
        journal.write(1, latents_of(1))
        assert same_bits(journal.read(1), latents_of(1))
