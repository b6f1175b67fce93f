"""What workers send is what the published formulas say, counted by the communicator.

Symbols as in the papers' tables: p tokens in a forward, h the model's width, L its layers, N
workers; a float has four bytes.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.distributed.walks import Walk, bytes_sent

from longtake.scheduler.degrees import Degrees
from longtake.scheduler.retention import Retention
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.cascade import Cascade
from longtake.scheduler.strategies.clip import Clip, Scopes
from longtake.scheduler.strategies.dual import Dual
from longtake.scheduler.strategies.stream import StreamBatch

GRID = (4, 4)  # which two workers share evenly
FRAME = 4 * 4 * 192 * 4  # bytes of one latent frame's tokens at the model's width
LAYERS, STEPS, FRAMES = 3, 3, 8


def joint(**changes: Any) -> Walk:
    return Walk(Bidirectional(), FRAMES, FRAMES, GRID, steps=STEPS, layers=LAYERS, **changes)


def test_ring_passes_keys_and_values_of_a_share(workers: Any) -> None:
    """2 (p / N) h (N - 1) a layer."""
    for sent in workers.run(2, bytes_sent, joint(), Degrees(ring=2), timeout=60):
        assert sent["ring exchange"] == STEPS * LAYERS * 2 * (FRAMES * FRAME // 2)


def test_ulysses_swaps_four_tensors(workers: Any) -> None:
    """4 (p / N) h (N - 1) / N a layer: q, k, v and what comes out."""
    for sent in workers.run(2, bytes_sent, joint(), Degrees(ulysses=2), timeout=60):
        assert sent["ulysses all_to_all"] == STEPS * LAYERS * 4 * (FRAMES * FRAME // 2) // 2


@pytest.mark.parametrize("frames", [8, 12])
def test_clips_send_halo_and_sample_whatever_their_length(workers: Any, frames: int) -> None:
    """2 C h a layer, with C the tokens of the halo and of the own global frames, each once."""
    strategy = Clip(Scopes(halo=1, global_frames=4), length=None, number=2)
    walk = Walk(strategy, frames, grid=GRID, steps=STEPS, layers=LAYERS)
    first, second = workers.run(2, bytes_sent, walk, Degrees(clip=2), timeout=60)
    # The video's first clip has frame 0, one in its middle, and its last frame, which is halo; the
    # other one's halo is itself one of the sample.
    assert first["clip all_to_all"] == STEPS * LAYERS * 2 * 3 * FRAME
    assert second["clip all_to_all"] == STEPS * LAYERS * 2 * 2 * FRAME


def test_dual_passes_hidden_states_once_a_launch(workers: Any) -> None:
    """(B + C) h a launch and stage, with B frames in a block and C before it, in no layer."""
    block, context, blocks = 2, 1, 4
    walk = Walk(Dual(block, context), 9, block, GRID, steps=STEPS, layers=LAYERS)
    first, _ = workers.run(2, bytes_sent, walk, Degrees(stages=2), timeout=60)
    assert first["stage 0 to 1 send"] == blocks * STEPS * (block + context) * FRAME


def test_cascade_passes_every_block_in_flight_to_all_others(workers: Any) -> None:
    """2 B h a layer, launch and other worker, with B tokens of a block: to be seen while both are
    noisy, two launches here, and for the cache once a block is clean."""
    block, blocks = 2, 2
    strategy = Cascade(Retention(recache=False), in_flight=2, sees="both")
    walk = Walk(strategy, block * blocks, block, GRID, steps=STEPS, layers=LAYERS)
    first, second = workers.run(2, bytes_sent, walk, Degrees(clip=2), timeout=60)
    each = LAYERS * 2 * block * FRAME
    assert first["clip all_to_all"] - second["clip all_to_all"] == blocks * each
    assert second["clip all_to_all"] == 2 * each


def test_stream_passes_hidden_states_once_a_step(workers: Any) -> None:
    """B h a step and hop, with B tokens of a block, whatever the rows of a launch."""
    block, blocks = 2, 5
    strategy = StreamBatch(Retention(recache=False), STEPS, apart=2)
    walk = Walk(strategy, block * blocks, block, GRID, steps=STEPS, layers=LAYERS)
    first, _ = workers.run(2, bytes_sent, walk, Degrees(stages=2), timeout=60)
    assert first["stage 0 to 1 send"] == blocks * STEPS * block * FRAME
