"""Composing configs/: what models choose, what users change, and what they may not."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from longtake.launch.config import GROUPS, compose_settings, options, settings_from
from longtake.launch.settings import FewStepSettings, SolverSettings
from longtake.launch.strategies import BidirectionalSettings, CausalSettings
from longtake.scheduler.errors import UserError
from longtake.scheduler.retention import Positions


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group in GROUPS for option in options(group)],
)
def test_every_option_composes(group: str, option: str) -> None:
    """For a model of the other kind too: nothing of that model's own choice is left over."""
    for model in ("tinyworld", "wan2.1-t2v-14b"):
        compose_settings({"model": model, group: option})


def test_models_choose_what_they_were_trained_for() -> None:
    self_forcing = compose_settings({"model": "self-forcing"})
    assert self_forcing.sampler == FewStepSettings(
        "few-step", (1000.0, 750.0, 500.0, 250.0), 5.0, True
    )
    assert isinstance(self_forcing.strategy, CausalSettings)
    assert (self_forcing.strategy.window, self_forcing.strategy.sink) == (21, 0)
    causvid = compose_settings({"model": "causvid"}).sampler
    assert causvid == FewStepSettings("few-step", (1000.0, 757.0, 522.0), 8.0, False)
    longlive = compose_settings({"model": "longlive"}).strategy
    assert longlive == CausalSettings("causal", 12, 3, Positions.ABSOLUTE, True, True, 0.0)
    small, large = (compose_settings({"model": f"wan2.1-t2v-{n}"}) for n in ("1.3b", "14b"))
    assert isinstance(small.strategy, BidirectionalSettings)
    assert isinstance(small.sampler, SolverSettings) and isinstance(large.sampler, SolverSettings)
    assert (small.sampler.options["flow_shift"], large.sampler.options["flow_shift"]) == (3.0, 5.0)
    assert (small.guidance, small.model.height, large.model.height) == (5.0, 480, 720)
    assert small.negative and not self_forcing.negative


def test_users_win_over_models() -> None:
    settings = compose_settings(
        {"model": "longlive", "strategy": None},
        [
            "strategy=causal",
            "strategy.window=9",
            "strategy.recache=false",
            "sampler.steps=[1000, 500]",
            "negative=ugly, worst quality: low",
            "guidance=2",
        ],
        {"seed": 7, "fps": None},
    )
    assert isinstance(settings.strategy, CausalSettings)
    assert settings.strategy.positions is Positions.RELATIVE
    assert (settings.strategy.window, settings.strategy.recache) == (9, False)
    assert isinstance(settings.sampler, FewStepSettings)
    assert settings.sampler.steps == (1000.0, 500.0)
    assert settings.negative == "ugly, worst quality: low"
    assert (settings.guidance, settings.seed, settings.fps) == (2.0, 7, None)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        (
            "strategy.windw=9",
            "strategy: unknown key 'windw'; known: kind, window, sink, positions, recache, "
            "keep_sink, context_timestep",
        ),
        ("sampler.steps=abc", "sampler.steps: expected int, got 'abc'"),
        ("strategy=casual", "unknown strategy 'casual'; known: bidirectional, "),
        ("sampler={}", "unknown sampler '{}'; known: causvid, euler"),
        ("nothing.here=1", "unknown key 'nothing'; known: seconds, seed"),
        ("seed.deep=1", "seed holds a value and no keys, got 'seed.deep'"),
        ("seed=1.5", "seed: expected int, got 1.5"),
        ("guidance=NaN", "guidance: expected a finite number, got nan"),
        ("strategy.positions=up", "expected one of absolute, relative, sink_rebased, got 'up'"),
        ("strategy.context_timestep=-1", "must be within 0 .. 1000, got -1"),
        ("model.block_frames=0", "model.block_frames must be at least 1, got 0"),
        ("window", "must be key=value"),
        ("+seed=3", "must be key=value"),
    ],
)
def test_refuses_what_is_not_known(assignment: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_settings({}, [assignment])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_the_samplers_is_refused() -> None:
    with pytest.raises(UserError, match=r"sampler\.shift must be more than 0"):
        compose_settings({"sampler": "few-step"}, ["sampler.shift=0"])


def test_settings_survive_a_manifest() -> None:
    settings = compose_settings({"model": "longlive"})
    assert settings_from(asdict(settings)) == settings


def test_leaves_hydra_as_it_was() -> None:
    compose_settings({})
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_module("longtake.configs", version_base="1.3"):
        compose_settings({"model": "longlive"})
        assert compose("config").seed == 0  # a program's own Hydra goes on
