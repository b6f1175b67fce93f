"""The configuration files are whole, whether or not a test composes them."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def test_every_config_file_is_a_mapping(root: Path) -> None:
    for file in sorted((root / "configs").rglob("*.yaml")):
        assert isinstance(OmegaConf.load(file), DictConfig), file


def test_config_files_have_one_ending(root: Path) -> None:
    """Hydra finds, and the package carries, `.yaml` only."""
    assert list((root / "configs").rglob("*.yml")) == []
