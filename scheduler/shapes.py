"""The shapes of what stands beside a transformer: its text encoder and its VAE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise


@dataclass(frozen=True)
class TextShape:
    """An encoder of the T5 family, with gated feed-forwards."""

    layers: int = 24
    width: int = 4096
    ffn_dim: int = 10240
    heads: int = 64
    head_dim: int = 64
    vocabulary: int = 256384
    buckets: int = 32  # of relative positions, learnt anew in every layer

    @property
    def parameters(self) -> int:
        """Of the encoder and its embeddings."""
        inner = self.heads * self.head_dim
        layer = 4 * self.width * inner + 3 * self.width * self.ffn_dim + 2 * self.width
        positions = self.layers * self.buckets * self.heads
        return self.vocabulary * self.width + self.layers * layer + positions + self.width

    def flops(self, tokens: int) -> int:
        """To encode one prompt padded to so many tokens."""
        inner = self.heads * self.head_dim
        products = 2 * tokens * (4 * self.width * inner + 3 * self.width * self.ffn_dim)
        return self.layers * (products + 4 * tokens**2 * inner)


@dataclass(frozen=True)
class Convolution:
    """One convolution of a VAE.

    Attributes:
        kernel: weights between two channels.
        rows: of what it makes per latent row, and columns per latent column.
        later: frames that it makes of each latent frame, of the first one or none in its place.
        first: whether it makes one of the first.
        norm: channels of the norm right before it.
    """

    inputs: int
    outputs: int
    kernel: int
    rows: int
    later: int
    first: bool = True
    norm: int = 0

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.outputs * (self.inputs * self.kernel + 1) + self.norm

    def flops(self, pixels: int, first: int, later: int) -> int:
        """Of `first` first latent frames, 0 or 1, and later ones, of so many latent pixels each."""
        frames = first * self.first + later * self.later
        return 2 * self.inputs * self.outputs * self.kernel * self.rows**2 * pixels * frames

    def results(self, pixels: int, first: int, later: int) -> int:
        """Numbers that it makes of the same."""
        return self.outputs * self.rows**2 * pixels * (first * self.first + later * self.later)


@dataclass(frozen=True)
class FeatureMap:
    """What a step of a decoder makes: channels, frames of a later latent frame, rows per latent
    row."""

    channels: int
    frames: int
    rows: int

    def numbers(self, pixels: int, first: int, later: int) -> int:
        """How many it has of `first` first latent frames, 0 or 1, and of later ones."""
        return self.channels * self.rows**2 * pixels * (first + later * self.frames)


@dataclass(frozen=True)
class DecoderStep:
    """A layer of a decoder that no cut between stages divides; see `runtime.parallel_vae`.

    Attributes:
        convolutions: in order.
        out: the feature map after it.
        kept: the one that is kept beside it, for the shortcut of a resolution.
        attends: every pixel to all of its latent frame.
    """

    convolutions: tuple[Convolution, ...]
    out: FeatureMap
    kept: FeatureMap | None = None
    attends: bool = False

    @property
    def cost(self) -> int:
        """Multiply-adds of its convolutions per latent pixel of a later frame."""
        return sum(conv.flops(1, 0, 1) for conv in self.convolutions) // 2


@dataclass(frozen=True)
class VaeShape:
    """Wan's causal VAE, arXiv 2503.20314; with `residual` and a patch of 2 that of Wan 2.2.

    Attributes:
        width: channels of the encoder's widest feature maps; `decoder_width` of the decoder's,
            None: as many.
        multipliers: of the width, from pixels to latents; rows double between two of them.
        blocks: residual blocks of a resolution; the decoder has one more.
        doubles_time: whether frames double where the decoder leaves a resolution, from the latents
            on.
        patch: pixels on the side of a patch that becomes channels.
        residual: a shortcut around every resolution, and upsampling that keeps the channels.
        flops_per_pixel: to decode, for VAEs of another make; None: counted from the above.
    """

    width: int = 96
    decoder_width: int | None = None
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    channels: int = 16
    doubles_time: tuple[bool, ...] = (True, True, False)
    patch: int = 1
    residual: bool = False
    flops_per_pixel: float | None = None

    @cached_property
    def parameters(self) -> int:
        """Of encoder and decoder."""
        return sum(conv.parameters for conv in (*self.decoder, *self.encoder))

    @property
    def widest(self) -> int:
        """Channels of the decoder's last feature maps, which are the largest."""
        return (self.decoder_width or self.width) * self.multipliers[0]

    @property
    def stride(self) -> int:
        """Pixels per latent pixel."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))

    @cached_property
    def decoder(self) -> tuple[Convolution, ...]:
        """Its convolutions, in order."""
        return tuple(conv for step in self.decoder_steps for conv in step.convolutions)

    @cached_property
    def decoder_steps(self) -> tuple[DecoderStep, ...]:
        """Its layers, in order."""
        base = self.decoder_width or self.width
        widths = [base * m for m in (self.multipliers[-1], *reversed(self.multipliers))]
        quantised = Convolution(self.channels, self.channels, 1, 1, 1)
        opening = Convolution(self.channels, widths[0], 27, 1, 1)
        steps = [_step([quantised]), _step([opening])]
        one, attention, other = _middle(widths[0])
        steps += [_step(one), _step(attention, attends=True), _step(other)]
        for index, (before, after) in enumerate(pairwise(widths)):
            halved = index > 0 and not self.residual  # by the upsampling before
            last = index == len(self.multipliers) - 1
            kept = steps[-1].out if self.residual and not last else None
            frames, rows = steps[-1].out.frames, steps[-1].out.rows
            for block in range(self.blocks + 1):
                inputs = after if block else before // 2 if halved else before
                steps.append(_step(_residual(inputs, after, rows, frames), kept))
            if not last:
                steps.append(_step(self._upsampling(index, after, rows, frames)))
        out = steps[-1].out
        steps.append(DecoderStep((), out))  # a norm
        closing = Convolution(
            widths[-1], 3 * self.patch**2, 27, out.rows, out.frames, norm=widths[-1]
        )
        return (*steps, _step([closing]))

    def _upsampling(self, index: int, channels: int, rows: int, frames: int) -> list[Convolution]:
        found = []
        if self.doubles_time[index]:
            found.append(Convolution(channels, 2 * channels, 3, rows, frames, first=False))
            frames *= 2
        outputs = channels if self.residual else channels // 2
        return [*found, Convolution(channels, outputs, 9, 2 * rows, frames)]

    @cached_property
    def encoder(self) -> tuple[Convolution, ...]:
        """Its convolutions, in order."""
        return tuple(self._encoder())

    def _encoder(self) -> Iterator[Convolution]:
        widths = [self.width * m for m in (1, *self.multipliers)]
        halves_time = tuple(reversed(self.doubles_time))
        frames, rows = 2 ** sum(self.doubles_time), self.stride // self.patch
        yield Convolution(3 * self.patch**2, widths[0], 27, rows, frames)
        for index, (before, after) in enumerate(pairwise(widths)):
            for block in range(self.blocks):
                yield from _residual(after if block else before, after, rows, frames)
            if index < len(self.multipliers) - 1:
                rows //= 2
                yield Convolution(after, after, 9, rows, frames)
                if halves_time[index]:
                    frames //= 2
                    yield Convolution(after, after, 3, rows, frames, first=False)
        for part in _middle(widths[-1]):
            yield from part
        yield Convolution(widths[-1], 2 * self.channels, 27, 1, 1, norm=widths[-1])
        yield Convolution(2 * self.channels, 2 * self.channels, 1, 1, 1)

    def decode_flops(self, pixels: int, frames: int, from_start: bool = True) -> float:
        """To decode latent frames of so many latent pixels; `from_start`: a video's first ones."""
        if self.flops_per_pixel is not None:
            later = int(2 ** sum(self.doubles_time))
            made = frames * later - (later - 1) * from_start
            return self.flops_per_pixel * made * pixels * self.stride**2
        width = (self.decoder_width or self.width) * self.multipliers[-1]
        return _flops(self.decoder, width, pixels, frames, from_start)

    def encode_flops(self, pixels: int, frames: int, from_start: bool = True) -> float:
        """To encode as many."""
        width = self.width * self.multipliers[-1]
        return _flops(self.encoder, width, pixels, frames, from_start)

    def decode_results(self, pixels: int, frames: int, from_start: bool = True) -> float:
        """Numbers in all feature maps of what is decoded."""
        first = int(from_start and frames > 0)
        maps = sum(conv.results(pixels, first, frames - first) for conv in self.decoder)
        if self.flops_per_pixel is None:
            return maps
        counted = sum(conv.flops(pixels, first, frames - first) for conv in self.decoder)
        return maps * self.decode_flops(pixels, frames, from_start) / counted

    def encode_results(self, pixels: int, frames: int, from_start: bool = True) -> float:
        """Numbers in all feature maps of what is encoded."""
        first = int(from_start and frames > 0)
        return sum(conv.results(pixels, first, frames - first) for conv in self.encoder)


def _flops(
    convolutions: Iterable[Convolution], middle: int, pixels: int, frames: int, from_start: bool
) -> float:
    first = int(from_start and frames > 0)
    total = sum(conv.flops(pixels, first, frames - first) for conv in convolutions)
    return total + 4 * pixels**2 * middle * frames  # attention within each latent frame


def _step(
    convolutions: list[Convolution], kept: FeatureMap | None = None, attends: bool = False
) -> DecoderStep:
    last = convolutions[-1]
    out = FeatureMap(last.outputs, last.later, last.rows)
    return DecoderStep(tuple(convolutions), out, kept, attends)


def _middle(width: int) -> tuple[list[Convolution], list[Convolution], list[Convolution]]:
    """A residual block, attention, another block."""
    attention = [
        Convolution(width, 3 * width, 1, 1, 1, norm=width),
        Convolution(width, width, 1, 1, 1),
    ]
    return _residual(width, width, 1, 1), attention, _residual(width, width, 1, 1)


def _residual(inputs: int, outputs: int, rows: int, frames: int) -> list[Convolution]:
    convolutions = [
        Convolution(inputs, outputs, 27, rows, frames, norm=inputs),
        Convolution(outputs, outputs, 27, rows, frames, norm=outputs),
    ]
    if inputs != outputs:
        convolutions.append(Convolution(inputs, outputs, 1, rows, frames))
    return convolutions


UMT5_XXL = TextShape()
WAN_VAE = VaeShape()
