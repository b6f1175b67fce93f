"""What a worker holds at its peak, in bytes, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass, fields

from longtake.scheduler.decode_degrees import BY_RANK_0, DecodeDegrees, latent_rows
from longtake.scheduler.degrees import Degrees, shares
from longtake.scheduler.flops import layer_weights, outer_weights
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Needs
from longtake.scheduler.share import Share

FLOAT32 = 4
CAUSAL_MEMORY = 2  # frames that a convolution of the VAE remembers
DECODED = 4  # the VAE's largest feature maps that are there at once: in, padded, normed, out


@dataclass(frozen=True)
class Footprint:
    """Bytes of one worker.

    Attributes:
        transformer: its layers' weights.
        text_encoder: weights, of rank 0 alone.
        vae: weights, of whoever decodes.
        cache: keys and values of past frames.
        text: keys and values of the prompt.
        activations: of one launch, at the peak of a layer.
        buffers: of what it sends and receives.
        latents: of the blocks in the making.
        decode: feature maps of the VAE and the frames that its convolutions remember.
    """

    transformer: int
    text_encoder: int = 0
    vae: int = 0
    cache: int = 0
    text: int = 0
    activations: int = 0
    buffers: int = 0
    latents: int = 0
    decode: int = 0

    @property
    def weights(self) -> int:
        """What is there once the worker has loaded its part of the model."""
        return self.transformer + self.text_encoder + self.vae

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def footprint(
    spec: ModelSpec,
    request: Request,
    degrees: Degrees,
    itemsize: int,
    strategy: Needs,
    rank: int,
    decode: DecodeDegrees = BY_RANK_0,
) -> Footprint:
    """What a worker holds; `itemsize` is of the transformer's and the text encoder's dtype.

    The VAE is in float32. Rank 0 alone reads prompts.
    """
    share = Share.of(rank, degrees, spec, request)
    kept, launched = strategy.cached_frames(request, spec), strategy.longest_launch(request, spec)
    clips = strategy.clips(request, spec)
    own = -(-launched // clips) * len(shares(clips, degrees.clip)[share.place.clip])
    heads = share.heads * spec.head_dim
    pixels = share.frame * spec.patch**2
    reads, decodes = rank == 0, rank < decode.world
    return Footprint(
        transformer=(share.layers * layer_weights(spec) + outer_weights(spec)) * itemsize,
        text_encoder=spec.text.parameters * itemsize if reads else 0,
        vae=spec.vae.parameters * FLOAT32 if decodes else 0,
        cache=2 * share.layers * kept * share.segment * heads * share.branches * itemsize,
        text=2 * share.layers * spec.text_tokens * spec.width * share.branches * itemsize,
        activations=own * share.own * share.branches * _per_token(spec, itemsize),
        buffers=_buffers(degrees, share, own, kept + own, heads * itemsize),
        latents=3 * launched * pixels * spec.latent_channels * FLOAT32,
        decode=decode_bytes(spec, request, decode, rank) if decodes else 0,
    )


def decode_bytes(
    spec: ModelSpec, request: Request, decode: DecodeDegrees = BY_RANK_0, rank: int = 0
) -> int:
    """What the VAE holds on one of the workers that decode, while a latent frame is decoded."""
    vae, own = spec.vae, decode.steps_of(decode.stage(rank), spec.vae)
    band = shares(latent_rows(spec, request), decode.bands)[rank % decode.bands]
    pixels = len(band) * (request.width // spec.spatial_stride)
    whole = vae.widest * spec.spatial_stride**2 * spec.temporal_stride // vae.patch**2
    largest = min(whole, max(step.out.numbers(1, 0, 1) for step in own))
    remembering = [conv for step in own for conv in step.convolutions if conv.kernel in (3, 27)]
    past = CAUSAL_MEMORY * sum(conv.inputs * conv.rows**2 for conv in remembering)
    return (DECODED * largest + past) * pixels * FLOAT32


def _per_token(spec: ModelSpec, itemsize: int) -> int:
    """Bytes that a token takes at the peak of a layer: in attention, in the feed-forward's middle,
    or where a gate mixes in float32."""
    hidden = spec.ffn_dim / spec.width
    attention = 6 * itemsize + 2 * FLOAT32
    middle = (2 + 2 * hidden) * itemsize
    gate = 2 * itemsize + 3 * FLOAT32
    return round(spec.width * max(attention, middle, gate))


def _buffers(degrees: Degrees, share: Share, launched: int, seen: int, token: int) -> int:
    """For all-to-all what goes out and what comes in; for the ring two shares of keys and values.

    `token`: bytes of a token in the worker's heads; `seen`: frames of keys.
    """
    batch, total = share.branches, 0
    if degrees.ulysses > 1:
        total += 2 * 3 * launched * share.segment * token * batch
    if degrees.ring > 1:
        total += 2 * 2 * seen * share.segment * token * batch
    if degrees.clip > 1:
        total += 2 * seen * share.segment * token * batch
    return total
