"""Launches of several parts: what holds of them whichever strategy wrote them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.distributed.walks import Walk, take
from tests.runtime.test_wan_transformer import Waits

from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Strategy
from longtake.scheduler.strategies.clip import Clip, Scopes
from longtake.scheduler.strategies.dual import Dual
from longtake.scheduler.strategies.rolling import Rolling

WINDOW = Retention(8, 2, Positions.RELATIVE, recache=False)


@pytest.mark.parametrize(
    "strategy",
    [Rolling(WINDOW, 3), Clip(Scopes(halo=2, global_frames=3), None, 3), Dual(3, 2)],
    ids=["rolling", "clip", "dual"],
)
def test_28_layers_never_wait_for_the_device(
    strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they read and write is settled before the first of them."""
    waits, launches = Waits(), 0
    layers = WanTransformer.layers_together

    def watched(*args: Any) -> Any:
        nonlocal launches
        launches += 1
        with waits:
            return layers(*args)

    monkeypatch.setattr(WanTransformer, "layers_together", watched)
    take(Walk(strategy, frames=16, cues=(0, 8)))
    assert launches >= 3 and waits.counts == {}
