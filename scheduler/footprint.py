"""What a worker holds at its peak, in bytes, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass, fields

from longtake.scheduler.decode_degrees import (
    BY_RANK_0,
    DecodeDegrees,
    decode_piece,
    latent_rows,
)
from longtake.scheduler.degrees import Degrees, shares
from longtake.scheduler.flops import layer_weights, outer_weights
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Needs
from longtake.scheduler.shapes import Convolution
from longtake.scheduler.share import Share

FLOAT32 = 4
CAUSAL_MEMORY = 2  # frames that a convolution of the VAE remembers


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
        decode: feature maps of the VAE and the frames that its convolutions remember; what they
            need more than the launches, where those are over by then.
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
    unfolds: bool = False,
) -> Footprint:
    """What a worker holds; `itemsize` is of the transformer's and the text encoder's dtype.

    The VAE is in float32. Rank 0 alone reads prompts. `unfolds`: the device's convolutions over
    frames write out what each result is the sum of, as torch has them on a CPU.
    """
    share = Share.of(rank, degrees, spec, request)
    kept, launched = strategy.cached_frames(request, spec), strategy.longest_launch(request, spec)
    clips = strategy.clips(request, spec)
    own = -(-launched // clips) * len(shares(clips, degrees.clip)[share.place.clip])
    heads = share.heads * spec.head_dim
    pixels = share.frame * spec.patch**2
    reads, decodes = rank == 0, rank < decode.world
    # Under stages each branch of guidance is a launch of its own.
    branches = 1 if degrees.stages > 1 else share.branches
    activations = own * branches * _activations(spec, share.own, itemsize)
    buffers = _buffers(degrees, share, own, kept + own, heads * itemsize)
    maps = decode_bytes(spec, request, decode, rank, unfolds) if decodes else 0
    ends = request.seconds is not None and not kept
    if ends and launched >= spec.latent_frames(request.pixel_frames):
        maps = max(0, maps - activations - buffers)  # launches have all frames: decoding comes last
    return Footprint(
        transformer=(share.layers * layer_weights(spec) + outer_weights(spec)) * itemsize,
        text_encoder=spec.text.parameters * itemsize if reads else 0,
        vae=spec.vae.parameters * FLOAT32 if decodes else 0,
        cache=2 * share.layers * kept * share.segment * heads * share.branches * itemsize,
        text=2 * share.layers * spec.text_tokens * spec.width * share.branches * itemsize,
        activations=activations,
        buffers=buffers,
        latents=3 * launched * pixels * spec.latent_channels * FLOAT32,
        decode=maps,
    )


def decode_bytes(
    spec: ModelSpec,
    request: Request,
    decode: DecodeDegrees = BY_RANK_0,
    rank: int = 0,
    unfolds: bool = False,
) -> int:
    """What the VAE holds on one of the workers that decode, while a latent frame is decoded."""
    own = decode.steps_of(decode.stage(rank), spec.vae)
    band = shares(latent_rows(spec, request), decode.bands)[rank % decode.bands]
    pixels = len(band) * (request.width // spec.spatial_stride)
    convolutions = [conv for step in own for conv in step.convolutions]
    around = [_around(conv, unfolds) for conv in convolutions if conv.kernel == 27]
    largest = max([*around, *(2 * step.out.numbers(1, 0, 1) for step in own)])
    past = sum(conv.inputs * conv.rows**2 for conv in convolutions if conv.kernel in (3, 27))
    made = decode_piece(spec, decode.stages) * spec.temporal_stride * 3 * spec.spatial_stride**2
    return (largest + CAUSAL_MEMORY * past + made) * pixels * FLOAT32


def _around(conv: Convolution, unfolds: bool) -> int:
    """Numbers for each latent pixel while a convolution of a residual block runs: the block's input
    and what is normed of it, behind the frames before, and padded; the shortcut, and what comes."""
    frames = conv.later
    held = conv.inputs * (2 * frames + 2 * (frames + CAUSAL_MEMORY)) + 2 * conv.outputs * frames
    return conv.rows**2 * (held + unfolds * conv.kernel * conv.inputs * frames)


def _activations(spec: ModelSpec, tokens: int, itemsize: int) -> int:
    """Bytes that a frame of so many tokens takes at the peak of a layer, which is in the middle of
    the feed-forward, or where a gate mixes in float32.

    Nine copies are there besides: of the tokens before the layer, in it and after attention,
    normed, as queries, keys, values and their mix, and for whoever has called. The modulation of
    the frame is there twice.
    """
    hidden = spec.ffn_dim / spec.width
    token = max((9 + 2 * hidden) * itemsize, 9 * itemsize + 3 * FLOAT32)
    return round(spec.width * (tokens * token + 2 * 6 * FLOAT32))


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
