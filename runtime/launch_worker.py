"""The worker of strategies whose launches have several parts, with blocks at different levels."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from longtake.parallel.guidance import guided
from longtake.parallel.mesh import Mesh
from longtake.runtime.launches import Launches
from longtake.runtime.layer_moves import move_layers, spans
from longtake.runtime.noise import Noise
from longtake.runtime.prompts import Prompts
from longtake.runtime.samplers import BlockSampler, Sampler
from longtake.runtime.source import NoiseSource, Source
from longtake.runtime.wan_transformer import (
    Attention,
    BranchKeys,
    Text,
    WanTransformer,
)
from longtake.runtime.workers import BlockStore, DenoiseWorker
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.task import NO_PROMPT, Edge, Kind, Part, Payload, Span, Task
from longtake.scheduler.traffic import Traffic

STATE_EVERY = 30.0  # seconds of work that a killed run loses at most, but for the launch at work


@dataclass
class Moving:
    """A block in the making: latents (1, C, f, h, w) float32 from frame `start` on, its solver."""

    start: int
    latents: Tensor
    solver: BlockSampler


class LaunchWorker(DenoiseWorker):
    """Does one worker's share of launches.

    All workers that have the first layers keep the latents of all blocks, which are small; the
    parts of a launch are shared out among the workers of the clip group, and their flows gathered.

    After a launch that finishes a block, and from time to time, the store is given what it takes to
    go on from there: the latents and solvers of the blocks in the making. A resumed run takes
    finished blocks and those out of the store, and evaluates clean parts again for their keys.
    Where keys of noisy frames are kept no store could give them back: there is no such state, and
    all is evaluated again.
    """

    def __init__(
        self,
        transformer: WanTransformer,
        encode_text: Callable[[int], Tensor],
        request: Request,
        spec: ModelSpec,
        sampler: Sampler,
        noise: Noise,
        store: BlockStore,
        mesh: Mesh,
        launches: Launches,
        context_timestep: float = 0.0,
        state_every: float = STATE_EVERY,
        source: Source | None = None,
    ) -> None:
        """As of `DenoiseWorker`; `state_every` so many seconds the store is given the state.

        Blocks begin from `source`, None: from the noise.
        """
        super().__init__(
            transformer=transformer,
            encode_text=encode_text,
            request=request,
            spec=spec,
            sampler=sampler,
            noise=noise,
            store=store,
            mesh=mesh,
            window=None,
            history=0,
            context_timestep=context_timestep,
        )
        self._launches, self.occupancy = launches, launches.store.occupancy
        self._layout = tuple(
            len(mesh.degrees.layers(stage, spec)) for stage in range(mesh.degrees.stages)
        )
        self.moved: Callable[[tuple[int, ...]], None] = lambda layers: None  # hears of new layouts
        self._moving: dict[int, Moving] = {}
        self._prompts = Prompts(transformer)
        self._source: Source = NoiseSource(noise) if source is None else source
        self._samplers: dict[int, Sampler] = {}
        self._likeness: dict[int, list[list[float]]] = {}
        self._state_every, self._state_kept = state_every, time.monotonic()
        self._known: dict[str, Tensor] = {}  # the state of an earlier run, until it is taken

    def known_until(self) -> int:
        """Up to which tick an earlier run came; -1 where the store has no state of it."""
        tick, self._known = self._store.read_state() or (-1, {})
        return tick

    @torch.inference_mode()
    def run(self, task: Task) -> None:
        """Do one task."""
        match task.kind:
            case Kind.ENCODE:
                self._prompts.add(task.cue, self._encode_text(task.cue))
            case Kind.REBALANCE:
                self._rebalance(task.layers)
            case Kind.RESTORE:
                self._take_back(task)
            case Kind.DENOISE | Kind.COMMIT:
                self._launch(task)
            case Kind.ADVANCE:
                flows = [key for key in self._inbox if key[0] is Payload.FLOW]
                self._move(task, [self._inbox.pop(key) for key in flows])
            case _:
                raise ValueError(f"the lane of launches does not {task.kind}")

    def _rebalance(self, after: tuple[int, ...]) -> None:
        stages, store = self._mesh.stage, self._launches.store
        move_layers(stages, self._transformer, store, self._layout, after)
        self._layout, self._layers = after, spans(after)[stages.index]
        self.moved(after)

    def send(self, edge: Edge) -> None:
        """Send to another stage; finished blocks lie ready for the decoding lane by themselves."""
        if edge.payload is not Payload.LATENT:
            super().send(edge)

    def _length(self, task: Task) -> int:
        return sum(len(part.frames) for part in self._launches.own(task))

    def _launch(self, task: Task) -> None:
        if not task.branch:
            self._open(task)
        attention = self._launches.attention(task, self._rows(task))
        if self._launches.own(task):
            self._evaluate_runs(task, attention)
        else:
            self._accompany(task, attention)
        needed = {task.cue, *task.cues, *(part.cue for part in task.parts)}
        self._prompts.forget(needed - {NO_PROMPT})
        if task.branch in (None, self._branches - 1):
            for block in task.drops:
                self._samplers.pop(block, None)
            if any(part.compares for part in task.parts):
                self._compare(task)
        if task.kind is Kind.COMMIT:
            if task.branch in (None, self._branches - 1):
                self._drop(task)
        elif self._last_stage == 0:
            self._move(task, [self._outbox.pop((Payload.FLOW, None))])

    def _compare(self, task: Task) -> None:
        """Tell all workers what this stage knows of how like frames are."""
        found = self._launches.likeness(task, self._layers.frames())
        if self._mesh.world.size == 1:
            self._likeness[task.tick] = found
        elif self._mesh.lane.index == 0:
            key = f"likeness/{task.tick}/{self._mesh.place.stage}"
            self._mesh.store.set(key, json.dumps(found))

    def likeness(self, tick: int) -> list[list[float]]:
        """See `schedule.Script.likeness`; waits until all stages know.

        Raises:
            CommunicationError: one of them is gone.
        """
        world, stages = self._mesh.world.size, range(self._mesh.degrees.stages)
        if world == 1:
            told = [self._likeness.pop(tick)]
        else:
            keys = [f"likeness/{tick}/{stage}" for stage in stages]
            told = [json.loads(self._mesh.store.take(key, world)) for key in keys]
        return [
            [sum(of_stages) / self._spec.layers for of_stages in zip(*part, strict=True)]
            for part in zip(*told, strict=True)
        ]

    def _evaluate_runs(self, task: Task, attention: Attention) -> None:
        """Evaluate this worker's layers of its parts; what comes out goes to the outbox."""
        model, batch = self._transformer, self._branches if task.branch is None else 1
        runs = runs_of(self._launches.own(task))
        lengths = [sum(len(part.frames) for part in run) for run in runs]
        levels = [self._levels(run).expand(batch, -1) for run in runs]
        if task.stage == 0:
            hidden = []
            for run, told in zip(runs, levels, strict=True):
                latents = torch.cat([self._latents_at(part) for part in run], dim=2)
                whole = model.embed(latents.expand(batch, -1, -1, -1, -1), told)
                hidden.append(replace(whole, tokens=self._sequence.split(whole.tokens)))
        else:
            tokens = self._inbox.pop((Payload.HIDDEN, task.branch))
            each = tokens.split([n * len(self._sequence.own) for n in lengths], dim=1)
            hidden = [
                model.resume(some, told, (frames, *self._grid))
                for some, told, frames in zip(each, levels, lengths, strict=True)
            ]
        texts = [self._text_of(run[0], task.branch) for run in runs]
        first, last = self._layers.start, self._layers.stop
        hidden = model.layers_together(hidden, first, last, attention, texts)
        self.evaluations += 1
        if task.stage < self._last_stage:
            together = torch.cat([run.tokens for run in hidden], dim=1)
            self._outbox[(Payload.HIDDEN, task.branch)] = together
        elif task.kind is Kind.DENOISE:
            flows = [
                model.assemble(self._sequence.gather(model.project(run), frames), run.grid)
                for run, frames in zip(hidden, lengths, strict=True)
            ]
            self._outbox[(Payload.FLOW, task.branch)] = torch.cat(flows, dim=2)

    def _open(self, task: Task) -> None:
        """Begin the blocks that take their first step; at which level, all stages hear."""
        for block in [part.block for part in task.parts if part.step == 0 and not part.idle]:
            sampler, first = self._sampler_of(block), block not in self._moving
            if task.stage == 0 and first:
                start, stop = reach([part for part in task.parts if part.block == block])
                solver = sampler.begin(block, self._noise)
                latents = self._source.latents(block, self._shape(stop - start))
                self._moving[block] = Moving(start, latents.to(self._transformer.device), solver)

    def _sampler_of(self, block: int) -> Sampler:
        """The sampler of a block, whose first level its source may settle."""
        if block not in self._samplers:
            first, own = self._source.timestep(block), self._sampler
            self._samplers[block] = own if first is None else own.starting_at(first)
        return self._samplers[block]

    def _latents_at(self, part: Part) -> Tensor:
        block = self._moving[part.block]
        first = part.frames.start - block.start
        return block.latents[:, :, first : first + len(part.frames)]

    def _levels(self, parts: Sequence[Part]) -> Tensor:
        """The timestep of every frame, (1, f); (1, 1) where all are the same."""
        told = [
            self._context_timestep
            if part.step is None
            else self._sampler_of(part.block).timesteps[part.step]
            for part in parts
            for _ in part.frames.frames()
        ]
        told = told[:1] if len(set(told)) == 1 else told
        return torch.tensor([told], dtype=torch.float32, device=self._transformer.device)

    def _text_of(self, part: Part, branch: int | None) -> Text:
        keys = self._prompts.of(part)
        return keys if branch is None else BranchKeys(keys, branch)

    def _accompany(self, task: Task, attention: Attention) -> None:
        """Without a part of the launch, only take in the keys that others want kept."""
        batch = self._branches if task.branch is None else 1
        model, spec = self._transformer, self._spec
        nothing = torch.empty(
            (batch, 0, spec.heads, spec.head_dim), device=model.device, dtype=model.dtype
        )
        for layer in self._layers.frames():
            attention.attend(layer, nothing, nothing, nothing)
        if task.stage < self._last_stage:
            tokens = nothing.flatten(2)
            self._outbox[(Payload.HIDDEN, task.branch)] = tokens
        elif task.kind is Kind.DENOISE:
            shape = (batch, *self._shape(0)[1:])
            empty = torch.empty(shape, device=model.device, dtype=model.dtype)
            self._outbox[(Payload.FLOW, task.branch)] = empty
        if task.stage > 0:
            self._inbox.pop((Payload.HIDDEN, task.branch))

    def _move(self, task: Task, flows: list[Tensor]) -> None:
        """Move every block of the launch by the flow of its parts."""
        flow = guided(torch.cat(flows), self._request.guidance, self._mesh.cfg)
        parted = Traffic.of(task.parts, self._mesh.clip.size).shares
        lengths = [
            sum(len(part.frames) for part in task.parts[share.start : share.stop])
            for share in parted
        ]
        flow = self._mesh.clip.all_gather(flow, lengths, 2)
        found = flow.split([len(part.frames) for part in task.parts], dim=2)
        for block in task.blocks:
            pieces = [
                (part, piece)
                for part, piece in zip(task.parts, found, strict=True)
                if part.block == block and part.step is not None and not part.idle
            ]
            if pieces:
                moving = self._moving[block]
                step = pieces[0][0].step
                assert step is not None
                moving.latents = moving.solver.step(step, moving.latents, mixed(pieces, moving))
        self._keep_finished(task)
        self._drop(task)
        self._keep_state(task)

    def _keep_finished(self, task: Task) -> None:
        for block in task.finishes:
            if self._mesh.rank == 0:
                self._store.write(block, self._moving[block].latents)
                self._finished[block] = self._moving[block].latents

    def _drop(self, task: Task) -> None:
        for block in task.drops:
            self._moving.pop(block, None)

    def _keep_state(self, task: Task) -> None:
        now = time.monotonic()
        due = task.finishes or now - self._state_kept >= self._state_every
        if due and not task.keeps_noisy and self._mesh.rank == 0:
            self._store.write_state(task.tick, self._state())
            self._state_kept = now

    def _state(self) -> dict[str, Tensor]:
        state = {}
        for index, block in self._moving.items():
            state[f"{index}/latents"] = block.latents
            state[f"{index}/solver"] = block.solver.state()
            state[f"{index}/start"] = torch.tensor(block.start)
        return state

    def _take_back(self, task: Task) -> None:
        """Take finished blocks, and at last those in the making, out of the store."""
        for block in task.finishes:
            start, stop = reach([part for part in task.parts if part.block == block])
            latents = torch.zeros(self._shape(stop - start), device=self._transformer.device)
            if self._mesh.rank == 0:
                kept = self._store.read(block)
                if kept is None:
                    raise RuntimeError(f"block {block} was in the store and is no more")
                latents.copy_(kept)
            latents = self._mesh.lane.broadcast(latents, 0)
            if self._mesh.rank == 0:
                self._finished[block] = latents
            self._moving[block] = Moving(start, latents, self._sampler.begin(block, self._noise))
        if task.resumes:
            self._take_state()
        self._drop(task)

    def _take_state(self) -> None:
        device, name = self._transformer.device, "state/shapes"
        state, self._known = self._known, {}
        if self._mesh.rank == 0:
            shapes = {k: (list(t.shape), str(t.dtype).split(".")[-1]) for k, t in state.items()}
            self._mesh.store.set(name, json.dumps(shapes))
        for key, (shape, dtype) in json.loads(self._mesh.store.get(name)).items():
            buffer = torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
            if key in state:
                buffer.copy_(state[key])
            state[key] = self._mesh.lane.broadcast(buffer, 0)
        self._moving = {}
        for block in dict.fromkeys(int(key.split("/")[0]) for key in state):
            solver = self._sampler_of(block).begin(block, self._noise)
            solver.resume(state[f"{block}/solver"])
            start = int(state[f"{block}/start"])
            self._moving[block] = Moving(start, state[f"{block}/latents"], solver)


def runs_of(parts: Sequence[Part]) -> list[list[Part]]:
    """Neighbouring parts that share a prompt, and are all of those that a resumed run evaluates
    again, or none.

    Those are clean and kept; they stay among themselves as they will be then.
    """

    def kind(part: Part) -> tuple[bool, int, tuple[int, float] | None]:
        return part.step is None and part.writes is not None, part.cue, part.blend

    grouped = groupby(parts, key=kind)
    return [list(run) for _, run in grouped]


def reach(parts: Sequence[Part]) -> tuple[int, int]:
    """The first frame of all parts, and the end of the last."""
    return min(part.frames.start for part in parts), max(part.frames.stop for part in parts)


def mixed(pieces: list[tuple[Part, Tensor]], block: Moving) -> Tensor:
    """The flow of a block, (1, C, f, h, w): where parts overlap, their mean."""
    frames = block.latents.shape[2]
    part, piece = pieces[0]
    if len(pieces) == 1 and len(part.frames) == frames:
        return piece
    total = torch.zeros_like(block.latents)
    count = total.new_zeros(frames)
    for part, piece in pieces:
        here = Span(part.frames.start - block.start, part.frames.stop - block.start)
        total[:, :, here.start : here.stop] += piece
        count[here.start : here.stop] += 1
    if not count.all():
        raise ValueError("some frames of the block are in no part of the launch")
    return total / count.view(-1, 1, 1)
