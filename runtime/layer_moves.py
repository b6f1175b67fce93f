"""Layers that move from one stage to another while a run goes on: their weights and their cache."""

from __future__ import annotations

import copy
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from longtake.parallel.group import Group
from longtake.runtime.key_store import KeyStore
from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler.task import Span


def spans(counts: tuple[int, ...]) -> list[Span]:
    """The layers of each stage, given how many it has."""
    return [Span(start, stop) for start, stop in pairwise([0, *accumulate(counts)])]


def move_layers(
    stages: Group,
    transformer: WanTransformer,
    store: KeyStore,
    before: tuple[int, ...],
    after: tuple[int, ...],
) -> None:
    """Give layers away and take others over; all stages do it together, between two launches.

    Args:
        stages: the workers that have the other layers of what this one has.
        transformer: in which `nn.Identity` stands for layers of others.
        store: the keys and values of this worker's layers.
        before, after: how many layers each stage has.

    Raises:
        CommunicationError: if a stage fails.
    """
    me, blocks = stages.index, transformer.module.blocks
    old, new = spans(before), spans(after)
    pattern = blocks[old[me].start]
    size = sum(tensor.nbytes for tensor in pattern.state_dict().values()) + store.layer_bytes
    chunks, shapes = [], []
    for peer in range(stages.size):
        given = [] if peer == me else shared(old[me], new[peer])
        packed = [_pack(blocks[layer], store.give(layer)) for layer in given]
        for layer in given:
            blocks[layer] = nn.Identity()
        empty = torch.empty(0, dtype=torch.uint8, device=stages.device)
        chunks.append(torch.cat(packed) if packed else empty)
        coming = 0 if peer == me else len(shared(old[peer], new[me])) * size
        shapes.append((coming,) if peer != me else tuple(chunks[-1].shape))
    received = stages.all_to_all(chunks, shapes)
    for peer, packed_layers in enumerate(received):
        layers = [] if peer == me else shared(old[peer], new[me])
        for layer, packed in zip(layers, packed_layers.split(size), strict=bool(layers)):
            blocks[layer] = copy.deepcopy(pattern)
            store.take(layer, _unpack(blocks[layer], packed))


def shared(one: Span, other: Span) -> list[int]:
    """The layers that both have."""
    return [layer for layer in one.frames() if layer in other.frames()]


def _pack(block: nn.Module, cache: Tensor) -> Tensor:
    """As bytes, (n,) uint8: all weights in order, then the cache."""
    tensors = [*block.state_dict().values(), cache]
    return torch.cat([t.contiguous().flatten().view(torch.uint8) for t in tensors])


def _unpack(block: nn.Module, packed: Tensor) -> Tensor:
    """Fill a block's weights; what is left is the cache, as bytes."""
    start = 0
    for weight in block.state_dict().values():
        part = packed[start : start + weight.nbytes].clone()  # aligned for any dtype
        weight.copy_(part.view(weight.dtype).view(weight.shape))
        start += weight.nbytes
    return packed[start:].clone()
