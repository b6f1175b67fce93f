"""Both branches of guidance on one worker or on two give the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.parallel.guidance import guided
from longtake.parallel.mesh import Rendezvous, alone, open_mesh
from longtake.scheduler.degrees import Degrees

CPU = torch.device("cpu")


def flows() -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def combine(meeting: Rendezvous) -> Tensor:
    with open_mesh(meeting, Degrees(cfg=2), CPU) as mesh:
        return guided(flows()[mesh.place.cfg :][:1], 5.0, mesh.cfg)


def test_two_workers_combine_like_one(workers: Any) -> None:
    negative, positive = flows()
    one = guided(flows(), 5.0, alone(CPU).cfg)
    torch.testing.assert_close(one, (5 * positive - 4 * negative)[None])
    assert all(torch.equal(two, one) for two in workers.run(2, combine))


def test_without_guidance_there_is_one_branch() -> None:
    flow = flows()[:1]
    assert guided(flow, 1.0, alone(CPU).cfg) is flow
    with pytest.raises(ValueError, match="takes 2 branches, got 1 on each of 1 workers"):
        guided(flow, 2.0, alone(CPU).cfg)
    with pytest.raises(ValueError, match="takes 1 branches, got 2"):
        guided(flows(), 1.0, alone(CPU).cfg)
