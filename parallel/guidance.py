"""Classifier-free guidance, whose two branches may be on two workers."""

from __future__ import annotations

import torch
from torch import Tensor

from longtake.parallel.group import Group


def guided(flow: Tensor, scale: float, cfg_group: Group) -> Tensor:
    """Combine the branches of guidance; with a scale of 1 there is one, and nothing to combine.

    Both workers of a group of two get both flows and combine them in the same way, so they go on
    with the same bits.

    Args:
        flow: (branches of this worker, ...): the negative prompt's, then the prompt's.
        scale: of the guidance; the same on all workers.
        cfg_group: index 0 has the negative prompt, index 1 the prompt.

    Returns:
        (1, ...)

    Raises:
        ValueError: all workers together have neither one branch nor, with a scale, two.
    """
    branches = 1 if scale == 1 else 2
    if flow.shape[0] * cfg_group.size != branches:
        raise ValueError(
            f"guidance of {scale:g} takes {branches} branches, got {flow.shape[0]} on each of "
            f"{cfg_group.size} workers"
        )
    if branches == 1:
        return flow
    both = cfg_group.all_gather(flow, [flow.shape[0]] * cfg_group.size, 0)
    negative, positive = torch.split(both, 1)
    return negative + scale * (positive - negative)
