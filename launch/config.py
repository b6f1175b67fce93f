"""Compose the configuration: Hydra picks and merges the groups, `strict` freezes the result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf

from longtake.launch.settings import Settings
from longtake.launch.strategies import AnyStrategy
from longtake.launch.strict import load
from longtake.scheduler.errors import UserError

CONFIGS = "longtake.configs"
GROUPS = ("model", "strategy", "sampler")


def options(group: str) -> list[str]:
    """What can be chosen for a group."""
    folder = files(CONFIGS) / group
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def compose_settings(
    choices: Mapping[str, str | None],
    assignments: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Settings:
    """Compose `configs/`.

    Args:
        choices: an option for each group, None for the default.
        assignments: `key=value` each; the key is a path such as `strategy.window`, or a group. The
            value is JSON, or else plain text.
        values: values for keys at the top, given as arguments; None leaves a key alone. They win.

    Raises:
        UserError: an option or a key that does not exist, with those that do; a value of another
            type than the key's.
    """
    pairs = [_split(assignment) for assignment in assignments]
    chosen = {**{k: v for k, v in pairs if k in GROUPS}, **{k: v for k, v in choices.items() if v}}
    tree = _compose(chosen)
    for key, text in pairs:
        if key not in GROUPS:
            _put(tree, key, _parse(text))
    tree |= {key: value for key, value in (values or {}).items() if value is not None}
    return load(Settings, tree)


def plain_strategies() -> dict[str, AnyStrategy]:
    """Every strategy as its own file has it, without those that are variants of another one.

    Hydra would take a tenth of a second for each.
    """
    folder = files(CONFIGS) / "strategy"
    texts = {name: (folder / f"{name}.yaml").read_text("utf-8") for name in options("strategy")}
    trees = {name: yaml.safe_load(text) for name, text in texts.items()}
    return {
        name: load(_Group, {"strategy": tree}).strategy
        for name, tree in trees.items()
        if "defaults" not in tree
    }


@dataclass(frozen=True)
class _Group:
    strategy: AnyStrategy


def settings_from(tree: Mapping[str, Any]) -> Settings:
    """Settings as a manifest holds them; raises UserError as `compose_settings` does."""
    return load(Settings, tree)


def _split(assignment: str) -> tuple[str, str]:
    key, equals, value = assignment.partition("=")
    key = key.strip()
    if not equals or not all(part.isidentifier() for part in key.split(".")):
        raise UserError(
            f"a setting must be key=value, such as strategy.window=9; got {assignment!r}"
        )
    return key, value.strip()


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # not JSON: it stands for itself
        return text


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for depth, name in enumerate(path):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise UserError(f"{'.'.join(path[: depth + 1])} holds a value and no keys, got {key!r}")
    tree[last] = value


def _compose(chosen: Mapping[str, str]) -> dict[str, Any]:
    for group, option in chosen.items():
        if option not in options(group):
            raise UserError(f"unknown {group} {option!r}; known: {', '.join(options(group))}")
    with _own_hydra():
        tree = compose("config", [f"{group}={option}" for group, option in chosen.items()])
    plain: dict[str, Any] = OmegaConf.to_container(tree, resolve=True)  # type: ignore[assignment]
    return plain


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra composes from a global; a program around us may use it, and finds it as it was."""
    before = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONFIGS, version_base="1.3"):
            yield
    finally:
        Singleton.set_state(before)
