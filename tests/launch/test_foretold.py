"""What a run should have taken beside what it took, and what a description learns of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from longtake.launch.against import compare_again
from longtake.launch.calibrate import write_cluster
from longtake.launch.clusters import load_cluster, load_device, load_link
from longtake.launch.comparison import Compared, compare
from longtake.launch.learn import learn
from longtake.scheduler.cluster import Cluster, Node
from longtake.scheduler.tally import Load, Occupancy, Tally
from longtake.scheduler.timeline import Action, Activity

Cli = Callable[..., Result]
CORE = Cluster("core", (Node(load_device("cpu"), 1, load_link("loopback")),))


@pytest.fixture
def last(whole_run: Path) -> dict[str, Any]:
    """What the manifest tells of a whole run."""
    manifest: dict[str, Any] = json.loads((whole_run / "manifest.json").read_text())
    return dict(manifest["runs"][-1])


def test_a_whole_run_keeps_what_was_predicted(last: dict[str, Any]) -> None:
    predicted = last["predicted"]
    assert predicted["by"] == "a guess of this CPU"
    assert set(predicted["kinds"]) == {"encode", "denoise", "commit", "recache", "decode"}
    found = compare(predicted, last)
    assert found.total == Compared("total", predicted["seconds"], last["seconds"])
    assert "denoise" in found.describe() and "sent" not in found.describe()
    (unknown,) = [each for each in found.kinds if each.kind == "write"]
    assert unknown.predicted is None and unknown.error is None and unknown.measured is not None


def test_a_comparison_is_of_all_that_is_known() -> None:
    predicted = {"by": "h", "seconds": 3.0, "kinds": {"denoise": 2.0, "commit": 1.0}, "bytes": 30}
    run = {
        "seconds": 4.0,
        "timeline": {"denoise": {"seconds": 3.0, "count": 2}, "write": {"seconds": 1, "count": 1}},
        "waited": 0.5,
        "sent": {"ring exchange": 10, "world broadcast": 20, "world barrier": 7, "warm-up": 2},
    }
    found = compare(predicted, run)
    assert found.sent == Compared("bytes", 30, 30)
    assert found.describe() == "3 for 4 s (-25%), denoise 2 for 3 s (-33%), sent 30 B for 30 B"
    assert found.ratio("denoise", "commit") == 1.5 and found.ratio("decode") is None


def test_a_description_learns_from_a_run(whole_run: Path, tmp_path: Path) -> None:
    """Of a run that took what a known device would, starting from another device."""
    slow = replace(CORE.nodes[0], device=CORE.devices[0].slowed(2, 0.7))
    made, _ = compare_again(whole_run, Cluster("slow", (slow,)))
    manifest = json.loads((whole_run / "manifest.json").read_text())
    (run,) = manifest["runs"]
    run |= {"timeline": made.prediction.timeline.summary(), "seconds": made.prediction.seconds}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    before, after = (
        compare_again(tmp_path, cluster)[1] for cluster in (CORE, learn(CORE, [tmp_path]))
    )
    for kinds in (("denoise", "commit", "recache"), ("decode",)):
        assert abs((before.ratio(*kinds) or 0) - 1) > 0.1
        assert after.ratio(*kinds) == pytest.approx(1, abs=0.03)
    assert after.total.error == pytest.approx(0, abs=0.03)


def test_calibrate_from_a_run_writes_a_cluster(cli: Cli, whole_run: Path) -> None:
    write_cluster(CORE, "a core", Path("core.yaml"))
    words = ["calibrate", "--from", whole_run, "--cluster", "core.yaml", "--out", "better.yaml"]
    result = cli(*words)
    assert result.exit_code == 0, result.stderr
    assert load_cluster("better.yaml").devices[0].efficiency != CORE.devices[0].efficiency
    again = cli(*words)
    assert again.exit_code == 2 and "better.yaml is there already" in again.stderr


def test_a_tally_counts_and_passes_on() -> None:
    heard: list[Action] = []
    tally = Tally(heard.append)
    actions = [
        Action(0, Activity.TRANSFER, "ring exchange", 0, 1, 5, to=((1, 5),)),
        Action(0, Activity.TRANSFER, "ring exchange", 1, 2, 6, to=((1, 4), (2, 2))),
        Action(0, Activity.TRANSFER, "decode halo", 1, 2, 3, lane="decode", to=((2, 3),)),
        Action(0, Activity.WAIT, "ring exchange", 1, 1.5),
        Action(0, Activity.COMPUTE, "denoise", 1, 9),
    ]
    for action in actions:
        tally(action)
    tally.cache = lambda: Occupancy(3, 4)
    load = tally.load()
    assert dict(tally.sent) == {"ring exchange": 11, "decode halo": 3} and heard == actions
    assert load == Load(0.5, {1: 9, 2: 5}, Occupancy(3, 4))
    assert Load.from_dict(json.loads(json.dumps(load.to_dict()))) == load
