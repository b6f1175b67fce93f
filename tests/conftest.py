"""Settings that all tests share."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # tests run side by side, and some start processes of their own

settings.register_profile("longtake", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("longtake")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU, and torch sees none")
