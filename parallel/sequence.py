"""Every frame's tokens shared by the workers of a sequence: Ulysses inside, a ring around it."""

from __future__ import annotations

import torch
from torch import Tensor

from longtake.kernels.attention import attention, attention_with_lse
from longtake.kernels.merge import Partial
from longtake.parallel.mesh import Mesh
from longtake.parallel.ring import RingAttention
from longtake.scheduler.degrees import shares
from longtake.scheduler.task import Span


class SequenceParallel:
    """Who has which tokens of every frame, and how tokens become heads and back.

    Each worker owns a contiguous share of every frame's tokens, so whatever is said of frames
    (windows, caches, noise levels) holds on every worker. Tensors are frame-major: `f` frames of
    `s` tokens are (B, f * s, ...). A share may be empty; then the number of frames can't be read
    off a tensor, so all methods take it. It may be left out where the share isn't empty.

    For one worker all of this is the identity, and copies nothing.

    Attributes:
        own: the tokens of a frame that this worker owns.
        segment: those that its Ulysses group owns, which it sees with its share of heads.
    """

    def __init__(self, mesh: Mesh, tokens: int) -> None:
        """`tokens`: of one whole frame."""
        self._mesh, self._tokens = mesh, tokens
        degrees, place = mesh.degrees, mesh.place
        self._shares = shares(tokens, degrees.sequence)
        self._segments = [
            Span(
                self._shares[ring * degrees.ulysses].start,
                self._shares[(ring + 1) * degrees.ulysses - 1].stop,
            )
            for ring in range(degrees.ring)
        ]
        self._ring = RingAttention(mesh.ring)
        first = place.ring * degrees.ulysses
        self._neighbours = self._shares[first : first + degrees.ulysses]
        self.own = self._neighbours[place.ulysses]
        self.segment = self._segments[place.ring]

    def split(self, x: Tensor) -> Tensor:
        """Take this worker's share, (B, f * own, ...), of (B, f * tokens, ...)."""
        if self._mesh.sequence.size == 1:
            return x
        frames = x.unflatten(1, (-1, self._tokens))
        return frames[:, :, self.own.start : self.own.stop].flatten(1, 2)

    def gather(self, x: Tensor, frames: int) -> Tensor:
        """The inverse of `split`, on every worker of the sequence."""
        if self._mesh.sequence.size == 1:
            return x
        check_tokens(x, len(self.own), frames)
        parts = x.unflatten(1, (frames, len(self.own)))
        lengths = [len(share) for share in self._shares]
        return self._mesh.sequence.all_gather(parts, lengths, 2).flatten(1, 2)

    def to_heads(
        self, q: Tensor, k: Tensor, v: Tensor, frames: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From own tokens with all heads to the segment's tokens with a share of the heads.

        Args:
            q, k, v: (B, f * own, H, D); the Ulysses degree divides H.
            frames: f.

        Returns:
            q, k, v: (B, f * segment, H / ulysses, D).

        Raises:
            ValueError: the heads can't be shared out evenly.
        """
        group = self._mesh.ulysses
        if group.size == 1:
            return q, k, v
        if q.shape[2] % group.size:
            raise ValueError(f"{group.size} workers can't share {q.shape[2]} heads evenly")
        check_tokens(q, len(self.own), frames)
        by_head = [x.unflatten(1, (frames, len(self.own))).chunk(group.size, 3) for x in (q, k, v)]
        chunks = [torch.stack(parts) for parts in zip(*by_head, strict=True)]
        three, batch, _, _, heads, width = chunks[0].shape
        shapes = [(three, batch, frames, len(share), heads, width) for share in self._neighbours]
        received = group.all_to_all(chunks, shapes)
        together = torch.cat(received, dim=3).flatten(2, 3)
        return together[0], together[1], together[2]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
        """Softmax attention over the keys of the whole sequence.

        Args:
            q: (B, f * segment, h, D)
            k, v: (B, F * segment, h, D), with F the same on all workers.
            frames: F.

        Returns:
            (B, f * segment, h, D)
        """
        if self._mesh.ring.size == 1:
            return attention(q, k, v)
        check_tokens(k, len(self.segment), frames)
        return self._ring.attend(q, k, v, [frames * len(segment) for segment in self._segments])

    def attend_part(self, q: Tensor, k: Tensor, v: Tensor, frames: int) -> Partial:
        """As `attend`, to be merged with attention over other keys."""
        if self._mesh.ring.size == 1:
            return Partial.start(*attention_with_lse(q, k, v))
        check_tokens(k, len(self.segment), frames)
        lengths = [frames * len(segment) for segment in self._segments]
        return self._ring.attend_part(q, k, v, lengths)

    def join_segments(self, x: Tensor, frames: int) -> Tensor:
        """All tokens of the frames, (B, f * tokens, ...), of (B, f * segment, ...), on every worker
        of the ring."""
        if self._mesh.ring.size == 1:
            return x
        check_tokens(x, len(self.segment), frames)
        parts = x.unflatten(1, (frames, len(self.segment)))
        lengths = [len(segment) for segment in self._segments]
        return self._mesh.ring.all_gather(parts, lengths, 2).flatten(1, 2)

    def over_tokens(self, x: Tensor) -> Tensor:
        """The sum over all segments, of what was summed over this worker's."""
        return self._mesh.ring.total(x)

    def over_heads(self, x: Tensor) -> Tensor:
        """The sum over all heads, of what was summed over this worker's."""
        return self._mesh.ulysses.total(x)

    def to_tokens(self, out: Tensor, frames: int) -> Tensor:
        """The inverse of `to_heads`: (B, f * segment, H / ulysses, D) to (B, f * own, H, D)."""
        group = self._mesh.ulysses
        if group.size == 1:
            return out
        check_tokens(out, len(self.segment), frames)
        parts = out.unflatten(1, (frames, len(self.segment)))
        chunks = parts.split([len(share) for share in self._neighbours], dim=2)
        received = group.all_to_all(chunks, [chunks[group.index].shape] * group.size)
        return torch.cat(received, dim=3).flatten(1, 2)


def check_tokens(x: Tensor, per_frame: int, frames: int) -> None:
    """Refuse a tensor that isn't (B, frames * per_frame, ...)."""
    if x.shape[1] != frames * per_frame:
        raise ValueError(
            f"{x.shape[1]} tokens are not {frames} frames of the {per_frame} tokens that this "
            f"worker has of each"
        )
