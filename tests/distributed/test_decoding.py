"""Whole runs that several workers decode: the frames are those of one worker, whatever happens."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longtake.launch.ask import read_prompt, read_settings
from longtake.launch.draft import Draft, make_draft
from longtake.launch.engine import load_first_share, make_engine
from longtake.launch.follow import take_part
from longtake.launch.order import Order
from longtake.launch.tracing import Tracing
from longtake.parallel.beacon import Beacon
from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import Mesh, Rendezvous, connect, open_mesh
from longtake.runtime.model import load_decoder, load_transformer
from longtake.scheduler.errors import UserError
from longtake.scheduler.tally import Tally
from longtake.scheduler.timeline import MAIN, Action, Record

CPU = torch.device("cpu")
PROMPT = "a large red circle bouncing around slowly on a gray background"
SMALL = ("device=cpu", "dtype=float32", "size=64x48", "seconds=1.5", "seed=4")  # 6 latent rows
PLANS = [
    ("vae_bands=2", "ring=2"),
    ("vae_stages=2", "stages=2"),
    ("vae_bands=2", "clip=2", "strategy=cascade"),
    ("vae_bands=4", "stages=2", "ring=2"),
    ("vae_bands=2", "vae_stages=2", "ring=2", "clip=2", "strategy=rolling"),
    ("vae_bands=3", "cfg=2", "ring=2", "guidance=2", "strategy=bidirectional"),
]
WORKERS = ("ring=2", "ulysses=2", "stages=2", "clip=2", "cfg=2")
TOP = ("guidance", "strategy", "model", "seconds")  # keys that are not of `parallel`

LONG = ("seconds=6",)

Words = tuple[str, ...]


def draft_of(words: Words, workers: int = 1) -> Draft:
    asked = [word if word.startswith(TOP) else f"parallel.{word}" for word in words]
    model = "wan2.1-t2v-1.3b" if any(word.startswith("model.") for word in words) else "tinyworld"
    composed = read_settings(
        model=model,
        strategy=None,
        steps=1,
        size=None,
        settings=[*SMALL, *asked],
        workers=workers,
    )
    return make_draft(composed, read_prompt(PROMPT), composed.seconds)


@dataclass
class Frames:
    """A sink that keeps frames. `trouble` hears of each piece before it is kept."""

    trouble: Callable[[int], None] = lambda pieces: None
    pieces: list[np.ndarray] = field(default_factory=list)

    def write(self, frames: np.ndarray) -> None:
        self.trouble(len(self.pieces))
        self.pieces.append(frames)

    @property
    def all(self) -> np.ndarray:
        return np.concatenate(self.pieces)


def first_part(draft: Draft, mesh: Mesh | None, frames: Frames) -> None:
    model = load_first_share(draft)
    schedule = draft.schedule()
    make_engine(draft, model, schedule, frames, None, lambda progress: None, mesh).run()


def other_part(draft: Draft, mesh: Mesh, record: Record) -> None:
    own = draft.degrees.layers(mesh.place.stage, draft.spec)
    layers = range(own.start, own.stop)
    transformer = load_transformer(draft.config, CPU, torch.float32, layers)
    vae = None if mesh.decoders is None else load_decoder(draft.config, CPU)
    beacon = Beacon(mesh.store, mesh.rank)
    take_part(Order(draft, 1), transformer, vae, mesh, beacon, Notes(record), Tally())


class Notes(Tracing):
    """What is recorded goes elsewhere than into a trace."""

    def __init__(self, record: Record) -> None:
        super().__init__(wanted=False)
        self._told = record

    @property
    def record(self) -> Record:
        return self._told


def film(
    meeting: Rendezvous,
    words: Words,
    limit: float | None = None,
    trouble: Callable[[int], None] = lambda pieces: None,
    record: Record = lambda action: None,
) -> Any:
    """Rank 0's frames, and what kinds of actions the others recorded. `limit`: of an operation."""
    draft = draft_of(words, workers=meeting.world)
    frames, actions = Frames(trouble), list[Action]()
    store = connect(meeting)
    store.set(f"here/{meeting.rank}", "")
    for rank in range(meeting.world):
        store.get(f"here/{rank}")  # from here on nothing takes long
    meeting = replace(meeting, timeout=limit or meeting.timeout)

    def note(action: Action) -> None:
        actions.append(action)
        record(action)

    with open_mesh(meeting, draft.degrees, CPU, note, store, draft.decode) as mesh:
        if meeting.rank == 0:
            first_part(draft, mesh, frames)
            return frames.all
        other_part(draft, mesh, note)
    return {(action.lane, action.activity) for action in actions}


@cache
def alone_filmed(words: Words) -> np.ndarray:
    frames = Frames()
    first_part(draft_of(words), None, frames)
    return frames.all


def check(frames: np.ndarray, words: Words) -> None:
    """Pixels are bytes, which the last bits of a float may tip over."""
    expected = alone_filmed(tuple(word for word in words if word.startswith(TOP)))
    assert expected.std() > 10 and frames.shape == expected.shape
    difference = np.abs(frames.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


@pytest.mark.parametrize("words", PLANS, ids=" ".join)
def test_frames_are_those_of_one_worker(workers: Any, words: Words) -> None:
    world = 2 ** sum(word in WORKERS for word in words)
    frames, *_ = workers.run(world, film, words, timeout=60)
    check(frames, words)


def test_beside_ulysses_too(workers: Any, tiny_folder: Path) -> None:
    """Tinyworld's heads can't be shared out by two."""
    folder = f"model.folder={tiny_folder}"
    words = ("vae_bands=2", "ulysses=2", folder, "model.text_tokens=8", "strategy=causal")
    frames, kinds = workers.run(2, film, words, timeout=60)
    check(frames, words)
    lanes = {lane for lane, _ in kinds}
    assert lanes == {MAIN, "decode"} and kinds >= {(lane, "transfer") for lane in lanes}
    assert {("decode", "compute"), ("decode", "wait")} <= kinds


def stall(pieces: int) -> None:
    """For longer than anybody waits for a share of a task."""
    if pieces == 1:
        time.sleep(7.0)


def test_frames_may_be_taken_slowly(workers: Any) -> None:
    words = ("vae_bands=2", "stages=2", *LONG)
    frames, _ = workers.run(2, film, words, 3.0, stall, timeout=60)
    check(frames, words)


def fail(
    meeting: Rendezvous, words: Words, trouble: Callable[[int], None], record: Record
) -> tuple[type[BaseException], str]:
    """What ends a rank's part. Rank 0 takes the control store with it, as a process does."""
    try:
        film(meeting, ("vae_bands=2", "ring=2", *words), None, trouble, record)
    except (CommunicationError, UserError, MemoryError) as error:
        told = type(error), str(error)
    else:
        raise AssertionError("nothing ended it")
    gc.collect()
    return told


def refuse(pieces: int) -> None:
    if pieces == 1:
        raise UserError("the disk is full")


def exhaust(action: Action) -> None:
    if action.name == "decode of block 1" and action.worker == 1:
        raise MemoryError("no room for a feature map")


def die(action: Action) -> None:
    if action.name == "decode of block 0" and action.worker == 1:
        os._exit(9)


def at_peace(_: object) -> None:
    """No trouble."""


def test_a_disk_that_is_full_ends_the_run_of_all(workers: Any) -> None:
    (first, told), (second, _) = workers.run(2, fail, LONG, refuse, at_peace, timeout=30)
    assert (first, told, second) == (UserError, "the disk is full", CommunicationError)


def test_who_cannot_decode_says_so_and_is_missed(workers: Any) -> None:
    (first, _), (second, told) = workers.run(2, fail, LONG, at_peace, exhaust, timeout=30)
    assert (first, second, told) == (CommunicationError, MemoryError, "no room for a feature map")


def test_who_dies_while_it_decodes_is_named(workers: Any) -> None:
    """By then nothing else is left to do: there is one block, in several pieces."""
    words = ("strategy=bidirectional",)
    (kind, told), _ = workers.run(2, fail, words, at_peace, die, timeout=30, may_die=[1])
    assert kind is CommunicationError and told.startswith("worker 0: decoder band ")
    assert "with worker 1: " in told and "within" not in told  # it was noticed at once
