"""The decoder's layers, walked one by one in one process, and their cut into stages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock
from tests.runtime.vaes import PLAIN, RESIDUAL, make_vae
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from longtake.parallel.halo import Bands
from longtake.parallel.mesh import alone
from longtake.runtime.parallel_vae import Flow, Memory, ParallelDecodeStream, Size, decoder_layers
from longtake.runtime.wan_vae import DecodeStream
from longtake.scheduler.shapes import FeatureMap, VaeShape

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


def test_the_shape_tells_of_the_same_layers(vae: AutoencoderKLWan) -> None:
    config = vae.config
    shape = VaeShape(
        config.base_dim,
        config.decoder_base_dim,
        tuple(config.dim_mult),
        config.num_res_blocks,
        config.z_dim,
        tuple(reversed(config.temperal_downsample)),
        config.patch_size or 1,
        config.is_residual,
    )
    for step, layer in zip(shape.decoder_steps, decoder_layers(vae), strict=True):
        assert step.cost == layer.cost
        assert (step.out, step.kept) == (as_map(layer.out), layer.kept and as_map(layer.kept))
        assert step.attends == isinstance(layer.module, WanAttentionBlock)


def as_map(size: Size) -> FeatureMap:
    return FeatureMap(size.channels, size.frames, size.scale)
