"""Layers that move between stages: asked for where it can be, and told in the manifest."""

from __future__ import annotations

import json

import pytest

from longtake.launch.ask import read_prompt, read_settings
from longtake.launch.balance import layer_bytes
from longtake.launch.draft import Draft, make_draft
from longtake.launch.manifest import ended
from longtake.runtime.engine import Outcome
from longtake.runtime.memory import worker_needs
from longtake.scheduler.errors import UserError
from longtake.scheduler.timeline import Timeline

PROMPT = "a large red circle bouncing around slowly on a gray background"
TWO = ["parallel.workers=2", "parallel.stages=2"]


@pytest.mark.parametrize(
    ("strategy", "settings", "complaint"),
    [
        ("stream", [], "between stages, and there is one; set parallel.stages"),
        ("causal", TWO, "several blocks in flight, and causal has one; leave it out"),
        ("bidirectional", TWO, "several blocks in flight, and bidirectional has one"),
    ],
)
def test_where_nothing_can_move_it_is_refused(
    strategy: str, settings: list[str], complaint: str
) -> None:
    asked = [*settings, "parallel.rebalance=true"]
    composed = read_settings(
        model="tinyworld", strategy=strategy, steps=2, size=None, settings=asked
    )
    with pytest.raises(UserError, match=complaint):
        make_draft(composed, read_prompt(PROMPT), 2.0)


def test_a_layer_counts_with_what_the_cache_keeps_of_it() -> None:
    """What one layer more takes of a worker is what one stage less leaves to it."""
    asked = ["parallel.workers=2", "parallel.stage_layers=[%d,%d]"]

    def draft(first: int, second: int) -> Draft:
        settings = [text % (first, second) if "%" in text else text for text in asked]
        composed = read_settings(
            model="tinyworld", strategy="stream", steps=2, size=None, settings=settings
        )
        return make_draft(composed, read_prompt(PROMPT), 2.0)

    few, many = draft(2, 4), draft(3, 3)
    needs = [
        worker_needs(d.spec, d.strategy, d.request, d.dtype.itemsize, d.degrees)[0].total
        for d in (few, many)
    ]
    text = 2 * few.spec.text_tokens * few.spec.width * few.dtype.itemsize
    assert layer_bytes(few, 0) == layer_bytes(many, 0) == needs[1] - needs[0] - text


def test_moves_are_in_the_manifest() -> None:
    outcome = Outcome(True, 16, 2, 0, 9, Timeline(), moves=((3, (1, 4)),))
    run = ended({"runs": []}, outcome, [], True)["runs"][0]
    assert json.loads(json.dumps(run))["moves"] == [{"block": 3, "layers": [1, 4]}]
