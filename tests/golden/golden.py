"""Finds the golden vectors: the folder that LONGTAKE_GOLDEN_DIR names, or the project's own
copy."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]


def _folder() -> Path:
    asked = os.environ.get("LONGTAKE_GOLDEN_DIR")
    if asked:
        return Path(asked)
    beside = ROOT.parent / "shared" / "golden"
    return beside if beside.is_dir() else ROOT / "tests" / "golden" / "vectors"


FOLDER = _folder()


def cases(*systems: str) -> list[Path]:
    """The files of the given systems."""
    found = []
    for path in sorted(FOLDER.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if json.loads(file.metadata()["system"]) in systems:
                found.append(path)
    if not found:
        raise FileNotFoundError(f"no golden vectors of {', '.join(systems)} in {FOLDER}")
    return found
