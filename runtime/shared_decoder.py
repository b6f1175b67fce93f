"""One worker's part in decoding by several; it beats time with the others by rank 0's word."""

from __future__ import annotations

import threading

import numpy as np
from diffusers import AutoencoderKLWan
from torch import Tensor

from longtake.parallel.errors import CommunicationError
from longtake.parallel.link import Link
from longtake.parallel.mesh import Decoders, Mesh
from longtake.runtime.decoding import Decoder, LoneDecoder, to_bytes, to_images
from longtake.runtime.parallel_vae import ParallelDecodeStream

LOOK = 0.5  # seconds between looks whether there is still something to wait for


def make_decoder(vae: AutoencoderKLWan, mesh: Mesh, name: str) -> Decoder:
    """For the workers that decode; `name` tells this video from others of the mesh."""
    if mesh.decoders is None:
        return LoneDecoder(vae)
    return SharedDecoder(vae, mesh, mesh.decoders, name)


class SharedDecoder:
    """See `Decoder`.

    Nobody knows how long rank 0 needs until it goes on, as somebody may take its frames slowly. So
    it gives its word in the control store, for which the others wait with patience; from there on,
    whoever is late is missed.
    """

    def __init__(self, vae: AutoencoderKLWan, mesh: Mesh, decoders: Decoders, name: str) -> None:
        self._mesh, self._decoders, self._name = mesh, decoders, name
        self._bands, self._stages = decoders.bands, decoders.stages
        self._stream = ParallelDecodeStream(vae, self._bands, self._stages)
        self._feed = Link(self._stages)
        self._turn = -1
        self._given_up = threading.Event()

    @property
    def most(self) -> int:
        """The stages work on as many frames as they are."""
        return self._stages.size

    def begin(self) -> None:
        """See `Decoder`.

        Raises:
            CommunicationError: rank 0 is gone, or `give_up` was called.
        """
        self._turn += 1
        store, key = self._mesh.store, self._key(self._turn)
        if self._mesh.rank == 0:
            store.set(key, "")
        while not store.comes(key, LOOK):
            if self._given_up.is_set():
                raise CommunicationError("decoding", self._mesh.rank, (0,), "the run has ended")

    def decode(self, latents: Tensor) -> np.ndarray | None:
        """See `Decoder`.

        Raises:
            CommunicationError: another worker is gone or too late.
        """
        band = self._stream.decode(self._fetch(latents))
        pixels = None if band is None else self._stream.collect(to_bytes(band), latents.shape[3])
        if pixels is None:
            return None
        images = to_images(pixels)
        self._mesh.store.drop(self._key(self._turn))  # to give their share, all have read it
        return images

    def close(self) -> None:
        """See `Decoder`; errors as in `decode`."""
        self._feed.flush()
        self._stream.close()

    def give_up(self) -> None:
        """See `Decoder`."""
        self._given_up.set()
        self._decoders.close()

    def _fetch(self, latents: Tensor) -> Tensor:
        """Rank 0's latents on the workers of the first stage."""
        first, last = 0, self._stages.size - 1
        if self._stages.size > 1:
            if self._mesh.rank == 0:
                self._feed.send(latents, first)
            if self._stages.index != first:
                return latents
            if self._bands.index == 0:
                latents = self._feed.post(latents.shape, latents.dtype, last).wait()
        if self._bands.index > 0:
            latents = latents.new_empty(latents.shape)
        return self._bands.broadcast(latents, 0)

    def _key(self, turn: int) -> str:
        return f"{self._name}/{turn}"
