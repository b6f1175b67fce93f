"""The strategies as configuration: what can be set of each, and what that makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longtake.runtime.noise import Noise, SeededNoise
from longtake.scheduler.errors import UserError
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Strategy
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.cascade import Cascade
from longtake.scheduler.strategies.causal import Causal


@dataclass(frozen=True)
class StrategySettings:
    """What all strategies have."""

    @property
    def told_clean(self) -> float:
        """The noise level told to the model when it evaluates clean blocks."""
        return 0.0

    def strategy(self) -> Strategy:
        """The writer of schedules."""
        raise NotImplementedError

    def noise(self, seed: int) -> Noise:
        """Where its noise comes from."""
        return SeededNoise(seed)


@dataclass(frozen=True)
class BidirectionalSettings(StrategySettings):
    """All frames jointly."""

    kind: Literal["bidirectional"]

    def strategy(self) -> Strategy:
        return Bidirectional()


@dataclass(frozen=True)
class CausalSettings(StrategySettings):
    """Block by block; see `scheduler.retention.Retention`."""

    kind: Literal["causal"]
    window: int | None
    sink: int
    positions: Positions
    recache: bool
    keep_sink: bool
    context_timestep: float

    def __post_init__(self) -> None:
        if not 0 <= self.context_timestep <= 1000:
            raise UserError(
                f"strategy.context_timestep must be within 0 .. 1000, got {self.context_timestep:g}"
            )

    @property
    def told_clean(self) -> float:
        return self.context_timestep

    def strategy(self) -> Strategy:
        retention = Retention(self.window, self.sink, self.positions, self.recache, self.keep_sink)
        return Causal(retention)


@dataclass(frozen=True)
class CascadeSettings(StrategySettings):
    """Blocks in flight; see `scheduler.strategies.cascade`."""

    kind: Literal["cascade"]
    window: int | None
    sink: int
    positions: Positions
    in_flight: int
    lead: int
    sees: Literal["past", "both"]

    def strategy(self) -> Strategy:
        retention = Retention(self.window, self.sink, self.positions, recache=False)
        return Cascade(retention, self.in_flight, self.lead, self.sees)


AnyStrategy = BidirectionalSettings | CausalSettings | CascadeSettings
