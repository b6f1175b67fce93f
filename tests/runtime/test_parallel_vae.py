"""The decoder's layers, walked one by one in one process, and their cut into stages."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.vaes import PLAIN, RESIDUAL, make_vae
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from longtake.parallel.halo import Bands
from longtake.parallel.mesh import alone
from longtake.runtime.parallel_vae import Flow, Memory, ParallelDecodeStream, cut, decoder_layers
from longtake.runtime.wan_vae import DecodeStream
from longtake.scheduler.errors import UserError
from longtake.scheduler.shapes import VaeShape

MESH = alone(torch.device("cpu"))


@pytest.fixture(params=[RESIDUAL, PLAIN], ids=["residual", "plain"])
def vae(request: pytest.FixtureRequest) -> Iterator[AutoencoderKLWan]:
    with torch.no_grad():
        yield make_vae(request.param)


def random_latents(vae: AutoencoderKLWan, frames: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, vae.config.z_dim, frames, 3, 4, generator=generator)


def decode(
    stream: DecodeStream | ParallelDecodeStream, latents: Tensor, sizes: list[int]
) -> Tensor:
    pieces = [stream.decode(piece) for piece in latents.split(sizes, dim=2)]
    return torch.cat([piece for piece in pieces if piece is not None], dim=2)


@pytest.mark.parametrize("sizes", [[6], [1, 3, 2]])
def test_a_worker_alone_equals_diffusers_modules(vae: AutoencoderKLWan, sizes: list[int]) -> None:
    vae.double()
    latents = random_latents(vae, 6)
    stream = ParallelDecodeStream(vae, MESH.ring, MESH.stage)
    expected = decode(DecodeStream(vae), latents, [6])
    torch.testing.assert_close(decode(stream, latents, sizes), expected, atol=1e-12, rtol=0)


def test_interleaved_streams_do_not_meet(vae: AutoencoderKLWan) -> None:
    both = [random_latents(vae, 3, seed) for seed in (1, 2)]
    apart = [
        decode(ParallelDecodeStream(vae, MESH.ring, MESH.stage), latents, [1, 1, 1])
        for latents in both
    ]
    streams = [ParallelDecodeStream(vae, MESH.ring, MESH.stage) for _ in both]
    made: list[list[Tensor]] = [[], []]
    for frame in range(3):
        for stream, latents, out in zip(streams, both, made, strict=True):
            pixels = stream.decode(latents[:, :, frame : frame + 1])
            assert pixels is not None
            out.append(pixels)
    for out, expected in zip(made, apart, strict=True):
        assert torch.equal(torch.cat(out, dim=2), expected)


def test_the_sizes_that_a_receiver_expects_are_those_that_come(vae: AutoencoderKLWan) -> None:
    memory, bands = Memory(), Bands.of(3, MESH.ring)
    for first in (True, False):
        flow = Flow(random_latents(vae, 1))
        for layer in decoder_layers(vae):
            flow = memory.run(layer, flow, bands, first)
            assert flow.hidden.shape == layer.out.shape(2, 3, 4, first)
            assert (flow.kept is None) == (layer.kept is None)
            if flow.kept is not None and layer.kept is not None:
                assert flow.kept.shape == layer.kept.shape(2, 3, 4, first)


def test_the_costs_are_the_multiplications_of_a_later_frame(vae: AutoencoderKLWan) -> None:
    stream = ParallelDecodeStream(vae, MESH.ring, MESH.stage)
    stream.decode(random_latents(vae, 1))
    with FlopCounterMode(display=False) as counter:
        stream.decode(random_latents(vae, 1))
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    pixels = 2 * 3 * 4  # of the latents, and of a batch of 2
    assert counted == 2 * pixels * sum(layer.cost for layer in decoder_layers(vae))


def test_the_shape_tells_how_many_layers_there_are(vae: AutoencoderKLWan) -> None:
    shape = VaeShape(multipliers=tuple(vae.config.dim_mult), blocks=vae.config.num_res_blocks)
    assert shape.decoder_layers == len(decoder_layers(vae))


@given(st.data())
def test_no_cut_has_a_cheaper_dearest_stage(data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=8))
    parts = data.draw(st.integers(1, len(costs)))
    spans = cut(costs, parts)
    assert [frame for span in spans for frame in span.frames()] == list(range(len(costs)))
    assert len(spans) == parts and all(len(span) for span in spans)
    dearest = min(
        max(sum(costs[start:stop]) for start, stop in pairwise((0, *stops, len(costs))))
        for stops in combinations(range(1, len(costs)), parts - 1)
    )
    assert max(sum(costs[span.start : span.stop]) for span in spans) == dearest


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(UserError, match="has 3 layers to cut into stages, got 4 stages; legal are"):
        cut([1, 2, 3], 4)
