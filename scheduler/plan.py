"""Who runs which task, and what travels between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from longtake.scheduler.degrees import Degrees
from longtake.scheduler.task import Edge, Kind, Payload, Task

EVALUATIONS = frozenset({Kind.DENOISE, Kind.COMMIT, Kind.RECACHE})
DECODE = "decode"


@dataclass(frozen=True)
class Plan:
    """One lane for each stage of the transformer and one for the VAE.

    Inside a stage's lane the workers of `degrees` share every task. `branches` of guidance are
    evaluated one after another by staged lanes, so that two are in flight.
    """

    degrees: Degrees = field(default_factory=Degrees)
    branches: int = 1
    label: str = "exact"

    @property
    def lanes(self) -> tuple[str, ...]:
        """The names of all lanes."""
        return (*map(self.lane_of_stage, range(self.degrees.stages)), DECODE)

    def lane_of_stage(self, stage: int) -> str:
        """The name of a stage's lane."""
        return "denoise" if self.degrees.stages == 1 else f"stage {stage}"

    def lane_of(self, task: Task) -> str:
        """The name of the lane that runs a task."""
        return DECODE if task.kind is Kind.DECODE else self.lane_of_stage(task.stage)

    def parts(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """What the lanes do of a strategy's tasks, in one legal order.

        The flow of a staged evaluation is waited for late, before the next one that takes in what
        it moves or once `most_awaited` others have begun: so those fill the stages meanwhile.
        Decoding waits with the flow. Before layers move, all flows are in.
        """
        awaited: list[list[Task]] = []  # flows, each with the decodes that need it
        for task in tasks:
            # Flows come back in the order of the evaluations, so none is taken out of turn.
            needed = [i for i, late in enumerate(awaited) if set(late[0].moves) & set(task.blocks)]
            if task.kind is Kind.DECODE and needed:
                awaited[needed[-1]].append(task)
                continue
            due = len(awaited) if task.kind is Kind.REBALANCE else max(needed, default=-1) + 1
            if task.kind is Kind.DENOISE:
                due = max(due, len(awaited) - self.most_awaited)
            yield from chain.from_iterable(awaited[:due])
            del awaited[:due]
            yield from self._stages_of(task)
            if task.kind is Kind.DENOISE and self.degrees.stages > 1:
                awaited.append([replace(task, kind=Kind.ADVANCE)])
        yield from chain.from_iterable(awaited)

    @property
    def most_awaited(self) -> int:
        """How many flows may be on their way when an evaluation begins.

        With the one that begins, that is one more than fill the stages, so a flow that is a little
        late stops nobody. With many more, the last stage would wait until its flows are taken, and
        the first one for it.
        """
        return -(-self.degrees.stages // len(self._in_flight))

    def _stages_of(self, task: Task) -> Iterator[Task]:
        stages = range(self.degrees.stages)
        if len(stages) == 1 or task.kind in (Kind.RESTORE, Kind.DECODE):
            yield task
        elif task.kind in (Kind.ENCODE, Kind.REBALANCE):
            yield from (replace(task, stage=stage) for stage in stages)
        else:
            for branch in self._in_flight:
                yield from (replace(task, stage=stage, branch=branch) for stage in stages)

    def incoming(self, part: Task) -> tuple[Edge, ...]:
        """What a part needs from other lanes."""
        if part.kind is Kind.DECODE:
            return (self._edge(Payload.LATENT, part, 0, DECODE),)
        if part.kind is Kind.ADVANCE:
            last = self.degrees.stages - 1
            return tuple(
                self._edge(Payload.FLOW, replace(part, branch=branch), last, self.lane_of_stage(0))
                for branch in self._in_flight
            )
        if part.kind in EVALUATIONS and part.stage > 0:
            return (self._edge(Payload.HIDDEN, part, part.stage - 1, self.lane_of(part)),)
        return ()

    def outgoing(self, part: Task) -> tuple[Edge, ...]:
        """What a part gives to other lanes."""
        staged = self.degrees.stages > 1
        finishes = Kind.ADVANCE if staged else Kind.DENOISE
        if part.kind in (Kind.RESTORE, finishes) and part.finishes:
            done = (replace(part, block=block) for block in part.finishes)
            return tuple(self._edge(Payload.LATENT, each, 0, DECODE) for each in done)
        if part.kind not in EVALUATIONS or not staged:
            return ()
        if part.stage + 1 < self.degrees.stages:
            target = self.lane_of_stage(part.stage + 1)
            return (self._edge(Payload.HIDDEN, part, part.stage, target),)
        if part.kind is Kind.DENOISE:
            return (self._edge(Payload.FLOW, part, part.stage, self.lane_of_stage(0)),)
        return ()

    @property
    def _in_flight(self) -> tuple[int | None, ...]:
        apart = self.branches > 1 and self.degrees.stages > 1 and self.degrees.cfg == 1
        return tuple(range(self.branches)) if apart else (None,)

    def _edge(self, payload: Payload, part: Task, stage: int, target: str) -> Edge:
        branch = None if payload is Payload.LATENT else part.branch
        return Edge(payload, part.block, self.lane_of_stage(stage), target, branch)
