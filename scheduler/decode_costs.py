"""What the VAE costs: seconds of every worker that decodes, and what they send, to the byte.

`runtime/parallel_vae.py` and `runtime/shared_decoder.py` are what this reckons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from longtake.scheduler.cluster import Cluster, Device
from longtake.scheduler.decode_degrees import DecodeDegrees, latent_rows
from longtake.scheduler.degrees import shares
from longtake.scheduler.exchanges import FLOAT32, Exchange
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.shapes import DecoderStep
from longtake.scheduler.software import Software
from longtake.scheduler.task import Span

# How often a number is read or written between two convolutions of the VAE: norm, activation,
# memory, padding, the convolution, a share of the shortcut. Counted over diffusers' blocks.
VAE_PASSES = 17
NEIGHBOURLY = (9, 27)  # kernels that look at the rows above and below


class DecodeCosts:
    """Of pieces of a video; ranks are those of `DecodeDegrees`, and of the cluster."""

    def __init__(
        self,
        spec: ModelSpec,
        request: Request,
        cluster: Cluster,
        degrees: DecodeDegrees,
        software: Software,
        world: int,
    ) -> None:
        """`world`: how many workers there are, all of which decode if the software says so."""
        self._spec, self._request, self._cluster = spec, request, cluster
        self.degrees, self._software, self._world = degrees, software, world
        self._rows = latent_rows(spec, request)
        self._columns = request.width // spec.spatial_stride
        self._bands = shares(self._rows, degrees.bands)
        steps = [self._steps(stage) for stage in range(degrees.stages)]
        self._stages = [_StageShare.of(own, spec.vae.decoder_steps) for own in steps]
        self._home = [Counter[int]() for _ in steps]  # of a stage's workers, how many on each node
        for rank in range(degrees.world):
            self._home[degrees.stage(rank)][cluster.node_of(rank)] += 1

    def seconds(self, frames: Span, rank: int) -> float:
        """Compute of a worker's share of some latent frames; 0.0 if it has none."""
        if rank >= self.degrees.world:
            return 0.0
        vae, pixels, share = self._spec.vae, self._rows * self._columns, self._share(rank)
        band, starts = self._band(rank) / self._rows, frames.start == 0
        work = vae.decode_flops(pixels, len(frames), starts) * band * share.work
        made = vae.decode_results(pixels, len(frames), starts) * band * share.results
        device = self._cluster.devices[rank]
        seconds = self._convolve(device, work, made, len(frames) * share.launches)
        return seconds / self._world if self._software.parallel_vae else seconds

    def encode_seconds(self, frames: int) -> float:
        """Rank 0 makes so many latent frames of an input video, not its first."""
        vae, pixels = self._spec.vae, self._rows * self._columns
        work = vae.encode_flops(pixels, frames, from_start=False)
        made = vae.encode_results(pixels, frames, from_start=False)
        device = self._cluster.devices[0]
        return self._convolve(device, work, made, frames * len(vae.encoder))

    def exchanges(self, frames: Span, rank: int) -> list[Exchange]:
        """What a worker exchanges with others that decode; nothing that is empty.

        What may overlap is of the next stage, which works on an earlier frame meanwhile.
        """
        degrees = self.degrees
        if degrees.world == 1 or rank >= degrees.world:
            return []
        first = int(frames.start == 0 and len(frames) > 0)
        found = [*self._in_band(rank, first, len(frames) - first)]
        found += self._between_stages(rank, first, len(frames) - first)
        return [exchange for exchange in found if exchange.bytes]

    def kind(self, rank: int) -> Hashable:
        """The same for workers that take as long, and send as much, as each other."""
        if rank >= self.degrees.world:
            return None
        stage, here = self.degrees.stage(rank), self._cluster.node_of(rank)
        near = [self._cluster.node_of(other) == here for other in self._neighbours(rank)]
        name, first = self._cluster.devices[rank].name, rank % self.degrees.bands == 0
        return stage, first, self._band(rank), len(near), sum(near), self._home[stage][here], name

    def _in_band(self, rank: int, first: int, later: int) -> list[Exchange]:
        """Rows for neighbours, keys and values for all; latents come and frames leave by the
        first band."""
        degrees, band = self.degrees, self.degrees.bands_of(rank)
        stage, index = degrees.stage(rank), rank % degrees.bands
        own, others = self._band(rank) * self._columns, len(band) - 1
        steps = self._steps(stage)
        looking = [c for step in steps for c in step.convolutions if c.kernel in NEIGHBOURLY]
        row = sum(c.inputs * c.rows * (first * c.first + later * c.later) for c in looking)
        neighbours = self._neighbours(rank)
        halo = len(neighbours) * row * self._columns * FLOAT32
        hops = len(looking) * (first + later)
        found = [Exchange((rank, *neighbours), halo, False, hops, "decoder band all_to_all")]
        keys = sum(2 * step.out.channels for step in steps if step.attends) * (first + later)
        gathered = others * keys * own * FLOAT32
        found.append(Exchange(band, gathered, False, first + later, "decoder band all_gather"))
        if stage == 0 and index == 0:
            latents = others * self._latents(first + later)
            found.append(Exchange(band, latents, False, 1, "decoder band broadcast"))
        if stage == degrees.stages - 1 and index > 0:
            pixels = 3 * (first + later * self._spec.temporal_stride) * self._request.width
            bytes_ = pixels * self._band(rank) * self._spec.spatial_stride  # one of a colour
            ends = (rank, band[0])
            name = "decoder band all_to_all"
            found.append(Exchange(ends, bytes_, False, 1, name, senders=others))
        return found

    def _between_stages(self, rank: int, first: int, later: int) -> list[Exchange]:
        degrees, stages = self.degrees, self.degrees.stages_of(rank)
        if len(stages) == 1:
            return []
        stage, found = degrees.stage(rank), []
        if rank == 0:  # its latents go to the first stage
            latents = self._latents(first + later)
            name = f"decoder stage {stage} to 0 send"
            found.append(Exchange((rank, stages[0]), latents, False, 1, name))
        if stage < degrees.stages - 1:
            last, own = self._steps(stage)[-1], self._band(rank) * self._columns
            maps = [last.out, *([] if last.kept is None else [last.kept])]
            sent = sum(each.numbers(own, first, later) for each in maps) * FLOAT32
            name = f"decoder stage {stage} to {stage + 1} send"
            ends = (rank, stages[stage + 1])
            found.append(Exchange(ends, sent, True, first + later, name))
        return found

    def _neighbours(self, rank: int) -> tuple[int, ...]:
        """The ranks that decode the rows above and below."""
        band, index = self.degrees.bands_of(rank), rank % self.degrees.bands
        return band[max(0, index - 1) : index] + band[index + 1 : index + 2]

    def _band(self, rank: int) -> int:
        """Rows of latents."""
        return len(self._bands[rank % self.degrees.bands])

    def _latents(self, frames: int) -> int:
        pixels = self._rows * self._columns
        return frames * self._spec.latent_channels * pixels * FLOAT32

    def _steps(self, stage: int) -> tuple[DecoderStep, ...]:
        return self.degrees.steps_of(stage, self._spec.vae)

    def _share(self, rank: int) -> _StageShare:
        return self._stages[self.degrees.stage(rank)]

    def _convolve(self, device: Device, work: float, made: float, launches: int) -> float:
        """Seconds of `work` FLOPs that make so many numbers, in so many convolutions."""
        half = self._software.vae == "bfloat16"
        share = device.efficiency.convolution * self._software.on(device.name)
        rate = device.peak_of("bfloat16" if half else "tf32") * share
        moved = VAE_PASSES * made * (2 if half else 4)
        return max(
            launches * device.convolution_floor * self._software.floor,
            work / rate + moved / (device.bytes_per_second * device.efficiency.memory),
        )


@dataclass(frozen=True)
class _StageShare:
    """Of the whole decoder's FLOPs and results, and how many convolutions it has."""

    work: float
    results: float
    launches: int

    @classmethod
    def of(cls, steps: Sequence[DecoderStep], every: Sequence[DecoderStep]) -> _StageShare:
        return cls(
            sum(step.cost for step in steps) / sum(step.cost for step in every),
            _results(steps) / _results(every),
            sum(len(step.convolutions) for step in steps),
        )


def _results(steps: Sequence[DecoderStep]) -> int:
    return sum(conv.results(1, 0, 1) for step in steps for conv in step.convolutions)
