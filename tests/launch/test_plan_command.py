"""`longtake plan` and `longtake simulate`, for models whose weights are not here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import Result

from longtake.launch.clusters import load_cluster
from longtake.launch.plan import candidates, read_question
from longtake.launch.simulate import read_conditions
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue

Cli = Callable[..., Result]
WAN = ["--model", "wan2.1-1.3b", "--cluster", "h100x8", "--steps", "4", "--seconds", "6"]
SVG = "{http://www.w3.org/2000/svg}"


def told(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_plan_tells_the_best_first_and_why_others_are_impossible(cli: Cli) -> None:
    found = told(cli("plan", "a cat", *WAN, "--json", "--best", "3"))
    seconds = [plan["seconds"] for plan in found["plans"]]
    assert len(seconds) == 3 and seconds == sorted(seconds)
    assert found["model"] == "wan2.1-t2v-1.3b" and found["devices"] == 8
    for plan in found["plans"]:
        assert plan["peak_memory_bytes"] <= 80 * 2**30
        assert Degrees(**plan["degrees"]).world == plan["workers"] == len(plan["memory_bytes"])
        assert 0 < plan["first_frame_seconds"] <= plan["seconds"]
        assert plan["watt_hours"] > 0
    reasons = {rejected["reason"] for rejected in found["rejected"]}
    assert any("Ulysses degree of 8 doesn't divide the model's 12 heads" in r for r in reasons)


def test_plan_tells_people(cli: Cli) -> None:
    result = cli("plan", *WAN, "--strategy", "bidirectional", "--goal", "first-frame")
    assert result.exit_code == 0
    first, *_ = result.stdout.splitlines()
    assert first.startswith("6 s of 832x480 at 16 fps by wan2.1-t2v-1.3b in 4 steps, on h100x8")
    assert "best for first-frame:" in result.stdout
    assert "exact" in result.stdout and "bidirectional" in result.stdout
    assert "not possible, or not wanted:" in result.stdout


def test_a_plan_is_simulated_as_it_was_planned(cli: Cli) -> None:
    choice = ["--strategy", "bidirectional"]
    plan = told(cli("plan", *WAN, *choice, "--json"))["plans"][0]
    split = {name: degree for name, degree in plan["degrees"].items() if degree is not None}
    degrees = [f"parallel.{name}={degree}" for name, degree in split.items()]
    where = [word for setting in degrees for word in ("--set", setting)]
    workers = ["--workers", str(plan["workers"])]
    found = told(cli("simulate", *WAN, *choice, *workers, *where, "--json"))
    assert found["degrees"] == plan["degrees"]
    assert found["seconds"] == pytest.approx(plan["seconds"], rel=1e-3)
    assert found["peak_memory_bytes"] == plan["peak_memory_bytes"]


def test_stages_suit_devices_of_several_kinds(cli: Cli) -> None:
    words = ["--model", "wan2.1-14b", "--cluster", "h200-and-l40s", "--seconds", "6"]
    words += ["--strategy", "dual", "--set", "parallel.stages=2", "--workers", "8", "--json"]
    plan = told(cli("plan", *words))["plans"][0]
    layers = dict(zip(plan["nodes"], plan["degrees"]["stage_layers"], strict=True))
    assert sum(layers.values()) == 40 and layers["h200"] > layers["l40s"]
    memory = {device.name: device.memory for device in load_cluster("h200-and-l40s").devices}
    names = [name for name in plan["nodes"] for _ in range(4)]
    for held, name in zip(plan["memory_bytes"], names, strict=True):
        assert held <= memory[name]
    even = told(cli("simulate", *words, "--set", "parallel.stage_layers=[20,20]"))
    assert plan["seconds"] < even["seconds"]


def test_no_plan_is_exit_code_2(cli: Cli) -> None:
    result = cli("plan", *WAN, "--deadline", "0.001", "--strategy", "bidirectional")
    assert result.exit_code == 2
    assert "no plan is possible" in result.stdout
    assert "the deadline is 0.001 s" in result.stdout


def test_simulate_draws_and_traces(cli: Cli, tmp_path: Path) -> None:
    drawing, trace = tmp_path / "run.svg", tmp_path / "run.json"
    stages = ["--workers", "4", "--set", "parallel.stages=4", "--strategy", "dual"]
    result = cli("simulate", *WAN, *stages, "--draw", str(drawing), "--trace", str(trace))
    assert result.exit_code == 0, result.stderr
    assert "until the first frame" in result.stdout
    tree = ElementTree.parse(drawing)
    texts = [text.text or "" for text in tree.iter(f"{SVG}text")]
    for stage in range(4):
        assert f"stage {stage} (worker {stage})" in texts
    assert "decode" in texts
    for rect in tree.iter(f"{SVG}rect"):
        assert rect.get("width") == "100%" or float(rect.get("width", 0)) > 0
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    names = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {f"worker {stage} (h100)" for stage in range(4)}


def test_what_goes_wrong_costs_time(cli: Cli) -> None:
    run = ["simulate", *WAN, "--strategy", "causal", "--workers", "2", "--json"]
    calm = told(cli(*run))
    slow = told(cli(*run, "--straggler", "1=2"))
    lost = told(cli(*run, "--lose", f"{calm['seconds'] / 2}=1", "--restart", "7"))
    assert slow["seconds"] > 1.5 * calm["seconds"]
    assert lost["seconds"] > calm["seconds"] + 7
    assert lost["lost_seconds"] >= 7 and calm["lost_seconds"] == 0


def test_a_model_trained_on_whole_clips_is_offered_strategies_for_such(cli: Cli) -> None:
    ask = {"seconds": 6.0, "size": None, "strategy": None, "steps": None, "settings": []}
    cues = [Cue(0.0, "a")]
    joint = read_question(cues, cluster="h100x8", model="wan2.1-1.3b", **ask)  # type: ignore[arg-type]
    causal = read_question(cues, cluster="h100x8", model="self-forcing", **ask)  # type: ignore[arg-type]
    first, second = candidates(joint, []), candidates(causal, [])
    assert "bidirectional" in first and "causal" not in first
    assert "causal" in second and "bidirectional" not in second
    assert set(candidates(joint, ["causal"])) == {"causal"}
    assert causal.spec.layers == joint.spec.layers == 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "--goal", "speed"], "unknown goal 'speed'; known: latency, throughput"),
        (["plan", "--cluster", "abacus"], "unknown cluster 'abacus'; known: "),
        (["plan", "--model", "nothing"], "unknown model 'nothing'"),
        (["simulate", *WAN, "--workers", "16"], "16 workers need a device each, but h100x8 has 8"),
        (["simulate", *WAN, "--draw", "a.gif"], "a drawing is an .svg or .png file"),
        (["simulate", *WAN, "--lose", "soon"], "--lose must be SECONDS or SECONDS=RANK"),
        (["simulate", *WAN, "--straggler", "1"], "--straggler must be RANK=FACTOR"),
        (["simulate", *WAN, "--lose", "1=9"], "there is no worker 9; the ranks are 0 to 7"),
        (
            ["simulate", "--model", "wan2.1-14b", "--cluster", "rtx4090x1", "--seconds", "5"],
            "`longtake plan` finds what fits",
        ),
    ],
)
def test_mistakes_are_one_line(cli: Cli, words: list[str], message: str) -> None:
    result = cli(*words)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_conditions_are_read() -> None:
    conditions = read_conditions(3, 0.1, ["2=1.5"], ["10", "20=1"], 5.0)
    assert conditions.stragglers == {2: 1.5}
    assert [(loss.at, loss.worker) for loss in conditions.losses] == [(10.0, 0), (20.0, 1)]
    with pytest.raises(UserError, match="jitter"):
        read_conditions(0, -1.0, [], [], 0.0)
