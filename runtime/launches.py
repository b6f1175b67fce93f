"""Attention of a launch of several parts: each sees its own frames, others', and kept ones.

Parts may be shared out among the workers of a clip group. What they see of each other's frames
travels while each attends to what it has, and is merged in by its log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby, islice

import torch
from torch import Tensor

from longtake.kernels.merge import Partial
from longtake.kernels.rotary import rotate
from longtake.parallel.group import Group
from longtake.parallel.sequence import SequenceParallel
from longtake.runtime.contexts import segment_table
from longtake.runtime.key_store import KeyStore
from longtake.runtime.kv_cache import ALL
from longtake.scheduler.task import Part, Seen, Span, Task
from longtake.scheduler.traffic import Traffic

OWN, STORE = -1, -2  # where keys come from; otherwise from the peer of that index


@dataclass(frozen=True)
class Glance:
    """Some of a part's query frames look at some of its key frames, with a bias on the scores."""

    queries: Span
    keys: tuple[Span, ...]
    bias: float


@dataclass(frozen=True)
class Keys:
    """Frames of keys, in order: runs (source, first frame there, frames); their rotations; and who
    looks at them."""

    runs: tuple[tuple[int, int, int], ...]
    table: Tensor
    glances: tuple[Glance, ...]


@dataclass(frozen=True)
class View:
    """What one part sees: what is at hand, and what comes from peers.

    `frames` is its place among the worker's own frames of the launch, `table` turns its queries.
    """

    frames: Span
    table: Tensor
    near: Keys
    far: Keys

    @property
    def plain(self) -> bool:
        """Whether all queries see all keys, unbiased and at hand: one attention does it."""
        every = (Span(0, sum(count for *_, count in self.near.runs)),)
        return not self.far.runs and [(g.keys, g.bias) for g in self.near.glances] == [(every, 0)]


@dataclass(frozen=True)
class LaunchAttention:
    """What stands behind `attend` for one worker's parts of a launch; see `Launches.attention`.

    `frames`: how many of them are this worker's own. `kept`: own frames that are written, as
    (first, slots); `kept_far`: the same of what a peer sends.
    """

    sequence: SequenceParallel
    clip: Group
    store: KeyStore
    frames: int
    views: tuple[View, ...]
    traffic: Traffic
    kept: tuple[tuple[int, tuple[int, ...]], ...]
    kept_far: tuple[tuple[int, int, tuple[int, ...]], ...]
    rows: slice = field(default_factory=lambda: ALL)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Exchange, write, rotate and attend; see `wan_transformer.Attention`.

        Raises:
            CommunicationError: if a peer fails.
        """
        q, k, v = self.sequence.to_heads(q, k, v, self.frames)
        live = {OWN: (k, v)}
        transfer, received = self.clip.post_all_to_all(*self._messages(k, v))
        for first, slots in self.kept:
            keys, values = self._frames((k, v), first, len(slots))
            self.store.write(layer, slots, keys, values, self.rows)
        seen: list[dict[Span, Partial]] = []
        whole: dict[int, Tensor] = {}
        for index, view in enumerate(self.views):
            if view.plain:
                whole[index] = self._look_once(layer, view, q, live)
            seen.append({} if view.plain else self._look(layer, view, view.near, q, live, {}))
        transfer.wait()
        live |= {peer: (both[0], both[1]) for peer, both in enumerate(received) if both.numel()}
        for peer, first, slots in self.kept_far:
            keys, values = self._frames(live[peer], first, len(slots))
            self.store.write(layer, slots, keys, values, self.rows)
        parts = []
        for index, view in enumerate(self.views):
            if index in whole:
                parts.append(whole[index])
                continue
            found = self._look(layer, view, view.far, q, live, seen[index])
            parts += [found[span].result(q.dtype) for span in sorted(found)]
        return self.sequence.to_tokens(join(parts) if parts else q, self.frames)

    def _messages(self, k: Tensor, v: Tensor) -> tuple[list[Tensor], list[tuple[int, ...]]]:
        """What goes to each peer, (2, B, tokens, h, D), and the shapes of what comes."""
        me, chunks, shapes = self.clip.index, [], []
        for peer in range(self.clip.size):
            spans = self.traffic.spans(me, peer)
            if spans:
                parts = [torch.stack(self._frames((k, v), s.start, len(s))) for s in spans]
                chunks.append(torch.cat(parts, dim=2))
            else:
                chunks.append(k.new_empty(0))
            tokens = self.traffic.frames(peer, me) * len(self.sequence.segment)
            shapes.append((2, k.shape[0], tokens, *k.shape[2:]) if tokens else (0,))
        return chunks, shapes

    def _look_once(
        self, layer: int, view: View, q: Tensor, live: dict[int, tuple[Tensor, Tensor]]
    ) -> Tensor:
        k, v = self._gather(layer, view.near, live)
        (queries,) = self._frames((q,), view.frames.start, len(view.frames))
        frames = sum(count for *_, count in view.near.runs)
        return self.sequence.attend(rotate(queries, view.table), k, v, frames)

    def _look(
        self,
        layer: int,
        view: View,
        keys: Keys,
        q: Tensor,
        live: dict[int, tuple[Tensor, Tensor]],
        found: dict[Span, Partial],
    ) -> dict[Span, Partial]:
        """Attend to some keys; `found` is what was seen so far, by query frames."""
        if not keys.glances:
            return found
        k, v = self._gather(layer, keys, live)
        (queries,) = self._frames((q,), view.frames.start, len(view.frames))
        queries = rotate(queries, view.table)
        for glance in keys.glances:
            (some,) = self._frames((queries,), glance.queries.start, len(glance.queries))
            picked = [self._frames((k, v), span.start, len(span)) for span in glance.keys]
            some_k, some_v = (join(x) for x in zip(*picked, strict=True))
            part = self.sequence.attend_part(some, some_k, some_v, sum(map(len, glance.keys)))
            part.lse = part.lse + glance.bias
            if glance.queries in found:
                found[glance.queries].add(part.out, part.lse)
            else:
                found[glance.queries] = part
        return found

    def _gather(
        self, layer: int, keys: Keys, live: dict[int, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        pairs = []
        for source, group in groupby(keys.runs, key=lambda run: run[0]):
            if source == STORE:
                slots = [slot for _, slot, _ in group]
                pairs.append(self.store.read(layer, slots, self.rows))
            else:
                runs = [self._frames(live[source], first, n) for _, first, n in group]
                pairs += [(keys, values) for keys, values in runs]
        k, v = (join(x) for x in zip(*pairs, strict=True))
        return rotate(k, keys.table), v

    def _frames(self, tensors: Sequence[Tensor], first: int, count: int) -> tuple[Tensor, ...]:
        each = len(self.sequence.segment)
        return tuple(x[:, first * each : (first + count) * each] for x in tensors)


class Launches:
    """Makes the attention of launches, for one worker: its share of parts, tokens, heads."""

    def __init__(
        self,
        store: KeyStore,
        grid: tuple[int, int],
        head_dim: int,
        device: torch.device,
        sequence: SequenceParallel,
        clip: Group,
    ) -> None:
        self.store, self._sequence, self._clip = store, sequence, clip
        self._latest: tuple[Task, LaunchAttention] | None = None

        @lru_cache(64)
        def table(positions: tuple[int, ...]) -> Tensor:
            return segment_table(positions, grid, head_dim, device, sequence)

        self._table = table

    def own(self, task: Task) -> tuple[Part, ...]:
        """The parts of a launch that this worker evaluates; maybe none."""
        share = Traffic.of(task.parts, self._clip.size).shares[self._clip.index]
        return task.parts[share.start : share.stop]

    def attention(self, task: Task, rows: slice = ALL) -> LaunchAttention:
        """Settle what a launch reads, writes and sends; all branches of guidance ask for the same.

        Raises:
            ValueError: what should be seen is not there.
        """
        asked = replace(task, branch=None)
        if self._latest is None or self._latest[0] != asked:
            self._latest = (asked, self._settle(task))
        settled = self._latest[1]
        return settled if rows == ALL else replace(settled, rows=rows)

    def likeness(self, task: Task, layers: Iterable[int]) -> list[list[float]]:
        """For every part that has been evaluated, how like what it `compares` is; the sum over
        `layers`. All workers of the sequence ask together."""
        pairs = []  # slots of the newest frame and of another
        for part in task.parts:
            if part.compares:
                assert part.writes is not None
                (newest,) = self.store.slots(part.writes, frame_span(part.kept.stop - 1))
                for row, frame in part.compares:
                    pairs.append((newest, *self.store.slots(row, frame_span(frame))))
        sums = torch.stack(
            [
                torch.stack([self.store.sums(i, slots) for slots in zip(*pairs, strict=True)])
                for i in layers
            ]
        )  # (layers, 2, pairs, 2, heads, D)
        new, old = self._sequence.over_tokens(sums).unbind(1)
        dots = torch.stack([(a * b).sum((-1, -2)) for a, b in ((new, old), (new, new), (old, old))])
        dot, new, old = self._sequence.over_heads(dots)  # each (layers, pairs, 2)
        found = iter((dot / (new * old).sqrt()).mean(-1).sum(0).tolist())
        return [list(islice(found, len(part.compares))) for part in task.parts]

    def _settle(self, task: Task) -> LaunchAttention:
        for row, frames in task.evicts:
            self.store.evict(row, frames)
        traffic = Traffic.of(task.parts, self._clip.size)
        share = traffic.shares[self._clip.index]
        views = [self._view(index, task.parts, traffic) for index in share.frames()]
        kept: list[tuple[int, tuple[int, ...]]] = []
        kept_far: list[tuple[int, int, tuple[int, ...]]] = []
        for index, part in enumerate(task.parts):
            if part.writes is None:
                continue
            slots = tuple(self.store.reserve(part.writes, part.kept))
            source, first = traffic.find(index, part.kept, self._clip.index)
            if source == self._clip.index:
                kept.append((first, slots))
            else:
                kept_far.append((source, first, slots))
        return LaunchAttention(
            sequence=self._sequence,
            clip=self._clip,
            store=self.store,
            frames=sum(len(task.parts[index].frames) for index in share.frames()),
            views=tuple(views),
            traffic=traffic,
            kept=tuple(kept),
            kept_far=tuple(kept_far),
        )

    def _view(self, index: int, parts: Sequence[Part], traffic: Traffic) -> View:
        part, me = parts[index], self._clip.index
        _, first = traffic.find(index, part.frames, me)
        itself = Seen(part.frames, part.at, None, part.bias, part.within)
        near: list[tuple[Seen, list[tuple[int, int, int]]]] = []
        far: list[tuple[Seen, list[tuple[int, int, int]]]] = []
        for seen in part.sees:
            if seen.row is not None:
                slots = self.store.slots(seen.row, seen.frames)
                near.append((seen, [(STORE, slot, 1) for slot in slots]))
                continue
            source, start = traffic.find(traffic.holder(seen.frames, index), seen.frames, me)
            here = source == me
            run = (OWN if here else source, start, len(seen.frames))
            (near if here else far).append((seen, [run]))
        if part.sees_itself:
            near.append((itself, [(OWN, first, len(part.frames))]))
        # Where anything depends on the distance, every query frame looks for itself.
        apart = any(seen.by_distance for seen, _ in (*near, *far))
        size = 1 if apart else len(part.frames)
        queries = [Span(i, i + size) for i in range(0, len(part.frames), size)]
        return View(
            Span(first, first + len(part.frames)),
            self._table(tuple(part.at + i for i in range(len(part.frames)))),
            self._keys(near, part, queries),
            self._keys(far, part, queries),
        )

    def _keys(
        self,
        entries: Sequence[tuple[Seen, Sequence[tuple[int, int, int]]]],
        part: Part,
        queries: Sequence[Span],
    ) -> Keys:
        runs = tuple(run for _, some in entries for run in some)
        positions = [seen.at + i for seen, _ in entries for i in range(len(seen.frames))]
        glances = []
        for query in queries:
            looks: dict[float, list[Span]] = {}
            start = 0
            for seen, _ in entries:
                for near in seen.seen_by(part.frames.start + query.start):
                    begin = start + near.start - seen.frames.start
                    looks.setdefault(seen.bias, []).append(Span(begin, begin + len(near)))
                start += len(seen.frames)
            glances += [Glance(query, merged(spans), bias) for bias, spans in looks.items()]
        return Keys(runs, self._table(tuple(positions)), tuple(glances))


def frame_span(frame: int) -> Span:
    """One frame."""
    return Span(frame, frame + 1)


def merged(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Neighbouring spans as one."""
    found: list[Span] = []
    for span in spans:
        if found and found[-1].stop == span.start:
            found[-1] = Span(found[-1].start, span.stop)
        else:
            found.append(span)
    return tuple(found)


def join(tensors: Sequence[Tensor]) -> Tensor:
    """Along the tokens; one alone is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)
