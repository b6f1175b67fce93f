"""The ring of slots against a cache that shifts its entries, as the published code does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longtake.runtime.kv_cache import KVCache, Placement
from longtake.scheduler.retention import Retention
from longtake.scheduler.task import Span

LAYERS, BATCH, HEADS, HEAD_DIM = 2, 2, 1, 2
CPU = torch.device("cpu")


def make_cache(frames: int, tokens: int) -> KVCache:
    return KVCache(range(LAYERS), frames * tokens, BATCH, HEADS, HEAD_DIM, CPU, torch.float32)


def entries(frames: Span, tokens: int, version: int) -> Tensor:
    """Keys that tell which frame, token, row and version they are of."""
    frame = torch.tensor([*frames.frames()]).repeat_interleave(tokens) + 1000 * version
    token = torch.arange(tokens).repeat(len(frames))
    rows = torch.stack([frame, token], dim=-1).float()
    return torch.stack([rows, -rows])[:, :, None, :]


class Shifting:
    """A list of (frame, keys): what is not seen any more is cut out, new frames come last."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.held = tokens, list[tuple[int, Tensor]]()

    def write(self, frames: Span, context: tuple[Span, ...], keys: Tensor) -> None:
        own = dict(zip(frames.frames(), keys.split(self.tokens, dim=1), strict=True))
        seen = {frame for span in context for frame in span.frames()} | own.keys()
        self.held = [(f, own.pop(f, old)) for f, old in self.held if f in seen]
        self.held += sorted(own.items())

    def as_set(self) -> list[list[float]]:
        return as_set(torch.cat([keys for _, keys in self.held], dim=1))


def as_set(keys: Tensor) -> list[list[float]]:
    """What attention sees: an order of keys means nothing to it."""
    return sorted(keys.permute(1, 0, 2, 3).flatten(1).tolist())


@st.composite
def launches(draw: st.DrawFn) -> tuple[int, int, list[tuple[Span, tuple[Span, ...]]]]:
    """(capacity in frames, tokens per frame, launches), each block repeated, some recached."""
    block, sink = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    window = draw(st.integers(sink + block, sink + block + 8))
    retention = Retention(window, sink, keep_sink=draw(st.booleans()))
    found: list[tuple[Span, tuple[Span, ...]]] = []
    first = 0
    for number in range(draw(st.integers(1, 10))):
        frames = Span(number * block, (number + 1) * block)
        if number and draw(st.integers(0, 3)) == 0:
            left, again, first = retention.recached(frames.start, first)
            found.append((again, left))
        found += [(frames, retention.context(frames, first))] * draw(st.integers(1, 3))
    return window, draw(st.integers(1, 3)), found


@given(launches())
def test_07_holds_the_same_keys_as_a_cache_that_shifts(
    case: tuple[int, int, list[tuple[Span, tuple[Span, ...]]]],
) -> None:
    window, tokens, steps = case
    cache, shifting = make_cache(window, tokens), Shifting(tokens)
    for version, (frames, context) in enumerate(steps):
        keys = entries(frames, tokens, version)
        shifting.write(frames, context, keys)
        placement = cache.place(frames, context, tokens)
        for layer in range(LAYERS):
            cache.write(layer, placement, keys, layer - keys)
            read_keys, read_values = cache.read(layer, placement)
            assert as_set(read_keys) == shifting.as_set()
            assert torch.equal(read_values, layer - read_keys)
            assert (read_keys[0, :, 0, 0] % 1000).tolist() == placement.frames.tolist()


def walk(cache: KVCache, retention: Retention, blocks: int, block: int) -> Iterator[Placement]:
    for number in range(blocks):
        frames = Span(number * block, (number + 1) * block)
        yield cache.place(frames, retention.context(frames), tokens_per_frame=2)


def test_new_frames_take_the_slots_of_forgotten_ones() -> None:
    """Nothing moves: a frame keeps its slots for as long as it is seen."""
    before: np.ndarray | None = None
    for placement in walk(make_cache(9, 2), Retention(9, 3), blocks=12, block=3):
        if before is not None:
            kept = np.isin(before, placement.frames)
            assert (placement.frames[: len(before)][kept] == before[kept]).all()
        before = placement.frames
    assert before is not None
    assert before[::2].tolist() == [0, 1, 2, 33, 34, 35, 30, 31, 32]


def test_a_block_can_wrap_around() -> None:
    *_, placement = walk(make_cache(10, 2), Retention(10, 3), blocks=4, block=3)
    assert placement.frames[::2].tolist() == [0, 1, 2, 9, 10, 5, 6, 7, 8, 11]
    assert placement.writes == ((6, 0, 4), (18, 4, 2))


def test_memory_is_taken_once() -> None:
    cache = make_cache(9, 2)
    size = cache.nbytes
    assert size == 2 * LAYERS * BATCH * 9 * 2 * HEADS * HEAD_DIM * 4
    places = set()
    for placement in walk(cache, Retention(9, 3), blocks=30, block=3):
        assert len(placement.frames) <= 9 * 2
        places.add(tuple(tensor.data_ptr() for tensor in cache.read(1, placement)))
    assert len(places) == 1
    assert cache.nbytes == size


def test_context_that_was_never_cached_is_an_error() -> None:
    cache = make_cache(9, 2)
    cache.place(Span(0, 3), (), 2)
    with pytest.raises(ValueError, match=r"^frames \[3, 4\] should be attended to but are not"):
        cache.place(Span(5, 6), (Span(2, 5),), 2)


def test_what_does_not_fit_is_an_error() -> None:
    cache = make_cache(4, 2)
    cache.place(Span(0, 3), (), 2)
    with pytest.raises(ValueError, match=r"^frame 4 does not fit: the cache is full$"):
        cache.place(Span(3, 6), (Span(0, 3),), 2)


def test_a_window_may_not_shrink() -> None:
    """Slots are read from the first to the last in use, so none between them may be empty."""
    cache = make_cache(6, 2)
    cache.place(Span(0, 3), (), 2)
    cache.place(Span(3, 6), (Span(0, 3),), 2)
    with pytest.raises(ValueError, match="holes"):
        cache.place(Span(6, 7), (Span(4, 6),), 2)
