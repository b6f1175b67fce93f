"""`longtake calibrate`, and `longtake simulate --against` a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from longtake.launch.against import compare_again
from longtake.launch.calibrate import (
    cluster_tree,
    describe,
    link_of,
    measure_cluster,
    write_cluster,
)
from longtake.launch.clusters import load_cluster
from longtake.launch.comparison import Compared
from longtake.launch.config import settings_from
from longtake.parallel.preflight import Links, PairSpeed
from longtake.scheduler.cluster import Cluster
from longtake.scheduler.errors import UserError

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def here() -> Cluster:
    """This machine, measured in a hurry."""
    return measure_cluster("here", "tinyworld", 1, "cpu", seconds=0.0)


@pytest.fixture
def file(here: Cluster, tmp_path: Path) -> Path:
    path = tmp_path / "here.yaml"
    write_cluster(here, "a machine", path)
    return path


def test_two_workers_are_measured_at_the_same_time() -> None:
    (node,) = measure_cluster("two", "tinyworld", 2, "cpu", seconds=0.0).nodes
    assert node.count == 2 and node.shares_memory
    assert node.link.total is not None and node.link.total > 0 and node.link.latency > 0
    assert node.device.exchange_beside is not None
    assert node.device.exchange_beside >= node.device.exchange_floor >= 0


def test_what_is_written_loads_as_it_was(here: Cluster, file: Path) -> None:
    loaded = load_cluster(str(file))
    assert cluster_tree(loaded) == cluster_tree(here)
    assert loaded.name == "here" and len(loaded.devices) == 1
    assert file.read_text().startswith("# a machine\n")


def test_people_are_told_each_rate(here: Cluster) -> None:
    told = describe(here)
    for word in ("products", "attention", "memory", "launches", "decoding"):
        assert word in told


def test_a_file_is_not_replaced_unasked(cli: Cli, tmp_path: Path) -> None:
    there = tmp_path / "there.yaml"
    there.write_text("mine")
    result = cli("calibrate", "--out", there)
    assert result.exit_code == 2 and "--force" in result.stderr
    assert there.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "here.txt"], "a cluster is a .yaml file, got here.txt"),
        (["--device", "tpu"], "device 'tpu' is not there"),
        (["--model", "nothing"], "nothing"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, words: list[str], told: str) -> None:
    result = cli("calibrate", *words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert told in line


def test_links_are_the_usual_of_those_measured(here: Cluster) -> None:
    device = here.devices[0]
    pairs = [PairSpeed(0, 1, 900.0, 40.0), PairSpeed(1, 0, 700.0, 60.0)]
    link = link_of(Links(tuple(pairs), together=500.0), 2, device)
    assert (link.bytes_per_second, link.total) == pytest.approx((800e6, 1000e6))
    assert link.latency == pytest.approx(50e-6)
    assert link.rate(2) == pytest.approx(500e6)  # as much as each took in when all sent
    assert link_of(None, 1, device).latency == 0


def test_a_run_is_compared_kind_by_kind(cli: Cli, file: Path, whole_run: Path) -> None:
    result = cli("simulate", "--against", whole_run, "--cluster", file, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    measured = manifest_of(whole_run)["runs"][0]
    kinds = {each["kind"]: each for each in told["kinds"]}
    assert set(kinds) == {"commit", "decode", "denoise", "encode", "recache", "write"}
    for kind, each in kinds.items():
        assert each["measured"] == measured["timeline"][kind]["seconds"]
        assert (each["predicted"] is None) == (kind == "write")  # which nobody predicts
    assert told["total"]["measured"] == measured["seconds"]
    assert told["total"]["predicted"] >= kinds["denoise"]["predicted"]
    assert (told["bytes"]["predicted"], told["bytes"]["measured"]) == (None, None)
    assert (told["strategy"], told["workers"], told["cluster"]) == ("causal", 1, "here")


def test_people_see_a_table(cli: Cli, file: Path, whole_run: Path) -> None:
    told = cli("simulate", "--against", whole_run, "--cluster", file).stdout
    for word in ("predicted", "measured", "denoise", "decode", "write", "total", "sent"):
        assert word in told


def test_what_is_simulated_is_the_run_as_it_was_asked_for(file: Path, whole_run: Path) -> None:
    made, _ = compare_again(whole_run, load_cluster(str(file)))
    question = made.question
    assert question.request.pixel_frames == 64 and len(question.request.cues) == 2
    assert question.steps == 2 and question.itemsize == 4
    assert question.settings.strategy == settings_from(manifest_of(whole_run)["config"]).strategy


def test_an_error_is_of_what_was_measured() -> None:
    assert Compared("denoise", 3.0, 4.0).error == pytest.approx(-0.25)
    assert Compared("write", None, 4.0).error is None
    assert Compared("wait", 1.0, None).error is None


def test_what_is_no_whole_run_is_refused(tmp_path: Path, file: Path, whole_run: Path) -> None:
    with pytest.raises(UserError, match="it has no manifest"):
        compare_again(tmp_path, load_cluster(str(file)))
    manifest = manifest_of(whole_run)
    for changes in (
        {"runs": manifest["runs"] * 2},
        {"runs": [{**manifest["runs"][0], "finished": False}]},
        {"runs": []},
        {"request": {**manifest["request"], "seconds": None}},
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **changes}))
        with pytest.raises(UserError, match="can't be compared"):
            compare_again(tmp_path, load_cluster(str(file)))


def manifest_of(run_dir: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((run_dir / "manifest.json").read_text())
    return found
