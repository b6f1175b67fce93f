"""A worker's part in a batch of streams; what belongs to a stream is found by its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from longtake.parallel.agreement import StreamsAgreement
from longtake.parallel.mesh import Mesh
from longtake.runtime.launch_worker import STATE_EVERY
from longtake.runtime.member import AnyMember
from longtake.runtime.noise import Noise
from longtake.runtime.samplers import Sampler
from longtake.runtime.source import SharedSource, Source
from longtake.runtime.wan_transformer import WanTransformer
from longtake.runtime.workers import BlockStore
from longtake.scheduler.request import Request
from longtake.scheduler.streams import Batch, Conductor
from longtake.scheduler.task import Task
from longtake.scheduler.timeline import Record, forget


@dataclass(frozen=True)
class StreamsNoise:
    """Every stream's own, by the numbers of its own blocks; see `Noise`."""

    batch: Batch
    noise_of: Callable[[Request], Noise]

    def initial(self, block: int, shape: tuple[int, ...]) -> Tensor:
        """See `Noise`."""
        stream = self.batch.of_block(block)
        return self.noise_of(stream.joined.request).initial(stream.local(block), shape)

    def renoise(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """See `Noise`."""
        stream = self.batch.of_block(block)
        return self.noise_of(stream.joined.request).renoise(stream.local(block), step, shape)


@dataclass(frozen=True)
class StreamsSource:
    """Rank 0's sources of all streams, by their numbers; see `Source`."""

    batch: Batch
    sources: Mapping[int, Source]

    def ready(self, block: int) -> bool:
        """See `Source`."""
        source, local = self._find(block)
        return source.ready(local)

    def timestep(self, block: int) -> float | None:
        """See `Source`."""
        source, local = self._find(block)
        return source.timestep(local)

    def latents(self, block: int, shape: tuple[int, ...]) -> Tensor:
        """See `Source`."""
        source, local = self._find(block)
        return source.latents(local, shape)

    def _find(self, block: int) -> tuple[Source, int]:
        stream = self.batch.of_block(block)
        return self.sources[stream.joined.number], stream.local(block)


@dataclass(frozen=True)
class StreamsStore:
    """Rank 0's stores of all streams, by their numbers. Nothing is taken back out of them."""

    batch: Batch
    stores: Mapping[int, BlockStore]

    def read(self, block: int) -> None:
        """Nothing was kept."""

    def write(self, block: int, latents: Tensor) -> None:
        """To the stream's own store, if it has one."""
        stream = self.batch.of_block(block)
        if stream.joined.number in self.stores:
            self.stores[stream.joined.number].write(stream.local(block), latents)

    def read_state(self) -> None:
        """Nothing was kept."""

    def write_state(self, tick: int, tensors: dict[str, Tensor]) -> None:
        """Forget it: keys of noisy frames can't be had again, so nobody could go on from there."""


class StreamsMember(AnyMember):
    """A worker of a batch of streams. Rank 0 has the conductor, the sources and the stores."""

    def __init__(
        self,
        transformer: WanTransformer,
        batch: Batch,
        sampler: Sampler,
        noise_of: Callable[[Request], Noise],
        mesh: Mesh,
        text_shape: tuple[int, int],
        encode: Callable[[str], Tensor] | None,
        sources: Mapping[int, Source],
        stores: Mapping[int, BlockStore],
        conductor: Conductor | None,
        record: Record = forget,
        state_every: float = STATE_EVERY,
    ) -> None:
        """As of `Member`; `sources` and `stores` are looked into once streams have joined."""
        noise, first = StreamsNoise(batch, noise_of), mesh.rank == 0
        super().__init__(
            transformer,
            batch,
            sampler,
            noise,
            mesh,
            text_shape,
            encode,
            StreamsStore(batch, stores) if first else None,
            context_timestep=0.0,
            record=record,
            state_every=state_every,
            source=SharedSource(mesh, StreamsSource(batch, sources) if first else None),
        )
        self._batch, self._conductor = batch, conductor

    def _tasks(self) -> Iterator[Task]:
        return self._batch.tasks(StreamsAgreement(self._mesh, self._conductor))

    def _texts(self, cue: int) -> tuple[str, str]:
        return self._batch.texts(cue)
