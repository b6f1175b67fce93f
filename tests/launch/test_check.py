"""`longtake check`: what it says of a run that could be, and of one that could not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

import longtake
from longtake.launch.ask import read_settings
from longtake.launch.check import ANY_PROMPT, tell_check
from longtake.launch.draft import Draft, make_draft
from longtake.launch.preflight import describe_worker, preflight, recall_survey
from longtake.parallel.store import LocalStore
from longtake.runtime.memory import worker_needs
from longtake.runtime.model import ModelConfig, load_transformer, read_spec
from longtake.scheduler.decode_degrees import DecodeDegrees
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.footprint import footprint
from longtake.scheduler.request import Request
from longtake.scheduler.strategies.bidirectional import Bidirectional

CPU = torch.device("cpu")

Cli = Callable[..., Result]


def draft_of(*settings: str, workers: int = 1) -> Draft:
    composed = read_settings(
        model="tinyworld", strategy=None, steps=None, size=None, settings=settings, workers=workers
    )
    return make_draft(composed, [ANY_PROMPT], composed.seconds)


def test_two_workers_are_started_and_their_links_measured(cli: Cli) -> None:
    result = cli("check", "--workers", "2", "--seconds", "1", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["ok"] and told["problems"] == []
    assert [(pair["source"], pair["target"]) for pair in told["links"]["pairs"]] == [(0, 1), (1, 0)]
    first, second = told["workers"]
    assert first["versions"] == second["versions"]
    assert first["versions"]["longtake"] == longtake.__version__
    assert first["versions"]["torch"] == torch.__version__
    assert first["need"]["weights"] > second["need"]["weights"] > 0  # text encoder, VAE
    assert not list(Path.cwd().iterdir())


def test_one_worker_has_no_links(cli: Cli) -> None:
    result = cli("check", "--device", "cpu", "--seconds", "2")
    assert result.exit_code == 0 and result.stderr == ""
    first, *_, last = result.stdout.splitlines()
    assert first == "2 s of 64x64 at 16 fps by tinyworld (causal) in float32: one worker"
    assert last == "the run can start"
    (row,) = [line for line in result.stdout.splitlines() if line.startswith(" 0 ")]
    assert row.split()[2] == "cpu"
    assert f"longtake {longtake.__version__}, torch {torch.__version__}" in result.stdout
    assert "MB/s" not in result.stdout


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--workers", "7", "--set", "parallel.ulysses=7"], "legal are 1, 5;"),
        (["--workers", "50", "--set", "parallel.stages=50"], "legal are 1 to "),
        (["--workers", "2", "--set", "parallel.cfg=2", "--set", "guidance=1"], "legal is 1"),
        (["--workers", "3", "--set", "parallel.ring=2"], "must multiply to the number of workers"),
        (["--size", "65536x65536"], "are free on"),
    ],
)
def test_what_can_not_be_is_told_in_one_line(cli: Cli, settings: list[str], words: str) -> None:
    result = cli("check", *settings, "--device", "cpu")
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line
    told = json.loads(cli("check", *settings, "--device", "cpu", "--json").stdout)
    (problem,) = told.pop("problems")  # the memory that is free is another by now
    assert words in problem and told == {"ok": False, "warnings": []}


def test_a_run_is_refused_before_its_weights_load() -> None:
    draft = draft_of("device=cpu")
    store = LocalStore()
    found = preflight(store, 0, draft, CPU)
    assert found.problems == () and recall_survey(store, 1) == found
    large = replace(draft, request=replace(draft.request, height=65536, width=65536))
    needed = describe_worker(large, 0, CPU).need.total / 2**30
    with pytest.raises(UserError, match=rf"needs about {needed:.1f} GiB on cpu, .* are free"):
        preflight(LocalStore(), 0, large, CPU)


def test_a_run_that_can_not_be_is_told_with_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    draft = draft_of("device=cpu")
    large = replace(draft, request=replace(draft.request, height=65536, width=65536))
    assert tell_check(lambda: large, None, as_json=True) == 2
    out, err = capsys.readouterr()
    told = json.loads(out)
    (problem,) = told["problems"]
    assert not told["ok"] and err == f"error: {problem}\n" and told["links"] is None
    (worker,) = told["workers"]
    assert sum(worker["need"].values()) > worker["free"] > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_check(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)

    def interrupted() -> Draft:
        os.kill(os.getpid(), number)
        return draft_of("device=cpu")

    assert tell_check(interrupted, None, as_json=True) == code
    out, err = capsys.readouterr()
    assert out == "" and "stopping the check; once more to stop at once" in err
    assert err.endswith("stopped: the check was not finished\n")
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(("stages", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_a_stage_needs_memory_for_its_own_layers(tiny_folder: Path, stages: int, rank: int) -> None:
    config = ModelConfig("tiny", tiny_folder, None, 16, 32, 32, 3, 8)
    spec, degrees = read_spec(config), Degrees(stages=stages)
    own = degrees.layers(rank, spec)
    module = load_transformer(config, CPU, torch.float32, range(own.start, own.stop)).module
    held = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    request = Request((ANY_PROMPT,), 1.0, 32, 32, 16)
    assert footprint(spec, request, degrees, 4, Bidirectional(), rank).transformer == held


def test_who_reads_or_decodes_needs_memory_for_it() -> None:
    draft = draft_of("device=cpu", "parallel.stages=2", "parallel.ring=2", workers=4)

    def needs(of: Draft) -> Any:
        return worker_needs(of.spec, of.strategy, of.request, 4, of.degrees, of.decode)

    first, *others = needs(draft)
    assert first.decode > 0 and all(need.decode == 0 for need in others)
    assert all(first.weights > need.weights for need in others)
    _, second, third, _ = needs(replace(draft, decode=DecodeDegrees(2)))
    assert 2 * second.decode == first.decode and third.decode == 0
    assert second.weights > others[0].weights and third.weights == others[1].weights
    (whole,) = needs(draft_of("device=cpu"))
    assert whole.weights > first.weights and whole.run > first.run
