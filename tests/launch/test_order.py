"""What rank 0 tells the others is the whole run."""

from __future__ import annotations

import json

import pytest

from longtake.launch.ask import read_prompt, read_settings
from longtake.launch.draft import Draft, make_draft
from longtake.launch.order import NOTHING, Order
from longtake.scheduler.errors import UserError

PROMPTS = [
    (0.0, "a large red circle bouncing around slowly on a gray background"),
    (1.5, "a small blue square standing still on a pink background"),
]


def drafted(*settings: str) -> Draft:
    prompts = PROMPTS[:1] if "strategy=bidirectional" in settings else PROMPTS
    composed = read_settings(
        model="tinyworld", strategy=None, steps=None, size=None, settings=settings
    )
    return make_draft(composed, read_prompt(prompts), 3.0)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["guidance=3", "negative=dark", "seed=8", "parallel.workers=4", "parallel.stages=2"],
        ["strategy=bidirectional", "sampler=unipc", "dtype=bfloat16", "fps=8"],
        ["strategy.window=9", "strategy.sink=0", "strategy.recache=false"],
    ],
)
def test_round_trip_equals_the_draft(settings: list[str]) -> None:
    draft = drafted(*settings)
    text = Order(draft, threads=3).to_json()
    order = Order.from_json(text)
    assert order.threads == 3
    assert order.draft.settings == draft.settings and order.draft.request == draft.request
    assert order.draft.config == draft.config and order.draft.spec == draft.spec
    assert order.draft.strategy == draft.strategy and order.draft.degrees == draft.degrees
    assert (order.draft.device, order.draft.dtype) == (draft.device, draft.dtype)
    assert order.draft.sampler.timesteps == draft.sampler.timesteps
    assert [*order.draft.schedule()] == [*draft.schedule()]
    assert order.to_json() == text != NOTHING


def test_what_is_not_on_this_host_is_named() -> None:
    told = json.loads(Order(drafted(), threads=1).to_json())
    told["config"]["model"]["folder"] = "/nowhere/at/all"
    with pytest.raises(UserError, match="/nowhere/at/all"):
        Order.from_json(json.dumps(told))
