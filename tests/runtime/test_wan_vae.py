"""The VAE as streams equals diffusers' VAE on whole clips."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKLWan
from tests.runtime.vaes import PLAIN, RESIDUAL, make_vae
from torch import Tensor

from longtake.runtime.wan_vae import DecodeStream, EncodeStream


@pytest.fixture(params=[RESIDUAL, PLAIN], ids=["residual", "plain"])
def vae(request: pytest.FixtureRequest) -> Iterator[AutoencoderKLWan]:
    with torch.no_grad():
        yield make_vae(request.param)


def statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def random_latents(vae: AutoencoderKLWan, frames: int, seed: int = 1, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, vae.config.z_dim, frames, 2, 3, generator=generator)


def random_pixels(frames: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, frames, 16, 24, generator=generator) * 2 - 1


def decode_in_pieces(vae: AutoencoderKLWan, latents: Tensor, sizes: list[int]) -> Tensor:
    stream = DecodeStream(vae)
    return torch.cat([stream.decode(piece) for piece in latents.split(sizes, dim=2)], dim=2)


def encode_in_pieces(vae: AutoencoderKLWan, pixels: Tensor, sizes: list[int]) -> Tensor:
    stream = EncodeStream(vae)
    return torch.cat([stream.encode(piece) for piece in pixels.split(sizes, dim=2)], dim=2)


@pytest.mark.parametrize("sizes", [[7], [3, 3, 1], [1, 4, 2]])
def test_24_decoding_in_pieces_equals_the_whole_clip(
    vae: AutoencoderKLWan, sizes: list[int]
) -> None:
    vae.double()
    latents = random_latents(vae, 7, batch=2).double()
    mean, std = statistics(vae)
    whole = vae.decode(latents / (1.0 / std) + mean).sample  # as diffusers' WanPipeline does it
    pieces = decode_in_pieces(vae, latents, sizes)
    assert pieces.shape == whole.shape == (2, 3, 25, 16, 24)
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sizes", [[17], [1, 4, 4, 4, 4], [9, 8]])
def test_25_encoding_in_pieces_equals_the_whole_clip(
    vae: AutoencoderKLWan, sizes: list[int]
) -> None:
    vae.double()
    pixels = random_pixels(17).double()
    mean, std = statistics(vae)
    whole = (vae.encode(pixels).latent_dist.mode() - mean) / std
    pieces = encode_in_pieces(vae, pixels, sizes)
    assert pieces.shape == whole.shape == (1, vae.config.z_dim, 5, 2, 3)
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=0)


def test_the_pieces_leave_no_trace_to_the_last_bit(vae: AutoencoderKLWan) -> None:
    latents, pixels = random_latents(vae, 5), random_pixels(13)
    whole = decode_in_pieces(vae, latents, [5])
    assert torch.equal(decode_in_pieces(vae, latents, [1] * 5), whole)
    assert torch.equal(decode_in_pieces(vae, latents, [2, 3]), whole)
    whole = encode_in_pieces(vae, pixels, [13])
    assert torch.equal(encode_in_pieces(vae, pixels, [1, 4, 8]), whole)


def test_25_latents_that_are_zero_decode_as_the_mean(vae: AutoencoderKLWan) -> None:
    """Normalisation twice, or not at all, would miss the mean by far more than rounding."""
    vae.double()
    mean, _ = statistics(vae)
    zeros = torch.zeros_like(random_latents(vae, 2)).double()
    expected = vae.decode(mean.expand_as(zeros).double()).sample
    torch.testing.assert_close(DecodeStream(vae).decode(zeros), expected, atol=1e-6, rtol=0)
    assert (vae.decode(zeros).sample - expected).abs().max() > 1e-3


def test_26_interleaved_decode_streams_do_not_meet(vae: AutoencoderKLWan) -> None:
    first, second = random_latents(vae, 4, seed=1), random_latents(vae, 4, seed=2)
    one, two = DecodeStream(vae), DecodeStream(vae)
    turns = [
        (one.decode(a), two.decode(b))
        for a, b in zip(first.split(1, dim=2), second.split(1, dim=2), strict=True)
    ]
    assert torch.equal(torch.cat([a for a, _ in turns], 2), decode_in_pieces(vae, first, [1] * 4))
    assert torch.equal(torch.cat([b for _, b in turns], 2), decode_in_pieces(vae, second, [1] * 4))


def test_26_interleaved_encode_streams_do_not_meet(vae: AutoencoderKLWan) -> None:
    first, second = random_pixels(9, seed=1), random_pixels(9, seed=2)
    one, two = EncodeStream(vae), EncodeStream(vae)
    turns = [
        (one.encode(a), two.encode(b))
        for a, b in zip(first.split([1, 4, 4], 2), second.split([1, 4, 4], 2), strict=True)
    ]
    assert torch.equal(torch.cat([a for a, _ in turns], 2), encode_in_pieces(vae, first, [1, 4, 4]))
    assert torch.equal(
        torch.cat([b for _, b in turns], 2), encode_in_pieces(vae, second, [1, 4, 4])
    )


def test_diffusers_own_calls_between_do_not_disturb_a_stream(vae: AutoencoderKLWan) -> None:
    latents = random_latents(vae, 3)
    stream = DecodeStream(vae)
    pieces = [stream.decode(latents[:, :, :1])]
    vae.decode(random_latents(vae, 2, seed=5))
    pieces.append(stream.decode(latents[:, :, 1:]))
    assert torch.equal(torch.cat(pieces, dim=2), decode_in_pieces(vae, latents, [1, 2]))


def held_bytes(stream: DecodeStream | EncodeStream) -> int:
    held = [part for part in stream._cache if isinstance(part, Tensor)]
    return sum(part.untyped_storage().nbytes() for part in held)


def test_what_a_stream_holds_does_not_grow(vae: AutoencoderKLWan) -> None:
    decoder, encoder = DecodeStream(vae), EncodeStream(vae)
    decoder.decode(random_latents(vae, 3))
    encoder.encode(random_pixels(9))
    before = held_bytes(decoder), held_bytes(encoder)
    assert min(before) > 0
    decoder.decode(random_latents(vae, 20))
    encoder.encode(random_pixels(40))
    assert (held_bytes(decoder), held_bytes(encoder)) == before


def test_frames_that_do_not_fit_the_stride_are_refused(vae: AutoencoderKLWan) -> None:
    stream = EncodeStream(vae)
    with pytest.raises(ValueError, match=r"1 \+ a multiple of 4 frames, got 8"):
        stream.encode(random_pixels(8))
    stream.encode(random_pixels(5))
    with pytest.raises(ValueError, match="encodes a multiple of 4 frames, got 5"):
        stream.encode(random_pixels(5))


def test_detach_cuts_the_gradient_and_keeps_the_values(vae: AutoencoderKLWan) -> None:
    latents = random_latents(vae, 2)
    with torch.enable_grad():
        start = latents[:, :, :1].clone().requires_grad_()
        stream = DecodeStream(vae)
        stream.decode(start)
        stream.detach()
        then = stream.decode(latents[:, :, 1:].clone().requires_grad_())
        then.sum().backward()
    assert start.grad is None
    expected = decode_in_pieces(vae, latents, [1, 1])[:, :, 1:]
    torch.testing.assert_close(then, expected, atol=1e-6, rtol=0)
