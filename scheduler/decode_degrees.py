"""How many workers decode, how they share a frame, and who of them does what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.shapes import DecoderStep, VaeShape
from longtake.scheduler.task import Span

PIECE = 3


@dataclass(frozen=True)
class DecodeDegrees:
    """A grid of the first ranks, beside whatever else they do; the others don't decode.

    The last stage comes first, so that the frames end on rank 0; bands of a stage are neighbours.

    Attributes:
        bands: shares of the rows of every frame.
        stages: runs of the decoder's layers.
    """

    bands: int = 1
    stages: int = 1

    def __post_init__(self) -> None:
        for name in ("bands", "stages"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"parallel.vae_{name} must be at least 1, got {getattr(self, name)}"
                )

    @classmethod
    def fit(
        cls,
        workers: int,
        spec: ModelSpec,
        request: Request,
        *,
        bands: int | None,
        stages: int | None,
        spread: bool,
    ) -> DecodeDegrees:
        """Degrees for so many workers; None is not settled.

        With `spread`, where each worker has a device of its own, all of them decode, in bands as
        far as rows go; otherwise rank 0 does, as more workers would only take turns.

        Raises:
            UserError: it names the legal degrees.
        """
        stages = 1 if stages is None else stages
        if bands is None:
            most = min(workers // max(1, stages), latent_rows(spec, request))
            bands = max(1, most) if spread else 1
        found = cls(bands, stages)
        found.check(workers, spec, request)
        return found

    @property
    def world(self) -> int:
        """Workers that decode."""
        return self.bands * self.stages

    def stage(self, rank: int) -> int:
        """Whose layers a rank has."""
        return self.stages - 1 - rank // self.bands

    def steps_of(self, stage: int, vae: VaeShape) -> tuple[DecoderStep, ...]:
        """A stage's layers of the decoder."""
        return _stages(vae, self.stages)[stage]

    def bands_of(self, rank: int) -> tuple[int, ...]:
        """The ranks of a rank's stage, in order of their rows; none where it doesn't decode."""
        if rank >= self.world:
            return ()
        first = rank - rank % self.bands
        return tuple(range(first, first + self.bands))

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The ranks of a rank's band, in order of their layers; none where it doesn't decode."""
        if rank >= self.world:
            return ()
        return tuple(range(self.world - self.bands + rank % self.bands, -1, -self.bands))

    def check(self, workers: int, spec: ModelSpec, request: Request) -> None:
        """Refuse what the decoder, or the workers, can't be split into.

        Raises:
            UserError: it names the legal degrees.
        """
        rows, layers = latent_rows(spec, request), len(spec.vae.decoder_steps)
        if self.stages > layers:
            raise UserError(
                f"parallel.vae_stages={self.stages} needs a layer for each stage, but the VAE's "
                f"decoder has {layers}; legal are 1 to {layers}"
            )
        if self.bands > rows:
            raise UserError(
                f"parallel.vae_bands={self.bands} needs a row of latents for each band, but a "
                f"height of {request.height} has {rows}; legal are 1 to {rows}"
            )
        if self.world > workers:
            raise UserError(
                f"decoding by {self.describe()} needs {self.world} workers, got {workers}; "
                "parallel.vae_bands times parallel.vae_stages must be at most their number"
            )

    def describe(self) -> str:
        """For example `2 bands x 2 stages`; `rank 0` where nothing is split."""
        counts = {"band": self.bands, "stage": self.stages}
        split = [f"{count} {name}s" for name, count in counts.items() if count > 1]
        return " x ".join(split) or "rank 0"


BY_RANK_0 = DecodeDegrees()


def decode_piece(spec: ModelSpec, stages: int = 1) -> int:
    """Latent frames that are decoded at once, so many by each stage of the decoder."""
    return stages * min(spec.block_frames, PIECE)


def latent_rows(spec: ModelSpec, request: Request) -> int:
    """Rows of the latents of a frame."""
    return spec.grid(request.height, request.width)[0] * spec.patch


@cache
def _stages(vae: VaeShape, stages: int) -> tuple[tuple[DecoderStep, ...], ...]:
    spans = cut([step.cost for step in vae.decoder_steps], stages)
    return tuple(vae.decoder_steps[span.start : span.stop] for span in spans)


def cut(costs: Sequence[int], parts: int) -> list[Span]:
    """Cut layers into contiguous stages, none empty, so that the dearest stage is cheap.

    Raises:
        UserError: there are fewer layers than stages.
    """
    if not 1 <= parts <= len(costs):
        raise UserError(
            f"the VAE's decoder has {len(costs)} layers to cut into stages, got {parts} stages; "
            f"legal are 1 to {len(costs)}"
        )

    @cache
    def best(start: int, left: int) -> tuple[int, tuple[int, ...]]:
        """The dearest stage's cost and the stops, for the layers from `start` on."""
        if left == 1:
            return sum(costs[start:]), (len(costs),)
        choices = []
        for stop in range(start + 1, len(costs) - left + 2):
            dearest, stops = best(stop, left - 1)
            choices.append((max(sum(costs[start:stop]), dearest), (stop, *stops)))
        return min(choices)

    stops = best(0, parts)[1]
    return [Span(start, stop) for start, stop in zip((0, *stops[:-1]), stops, strict=True)]
