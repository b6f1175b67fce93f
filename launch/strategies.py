"""The strategies as configuration: what can be set of each, and what that makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from longtake.scheduler.bank_retention import BankRetention
from longtake.scheduler.deep_retention import DeepRetention
from longtake.scheduler.errors import UserError
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Strategy
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.buffer import Buffer
from longtake.scheduler.strategies.cascade import Cascade
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.strategies.chunks import Chunks
from longtake.scheduler.strategies.clip import Clip, Scopes
from longtake.scheduler.strategies.dual import Dual
from longtake.scheduler.strategies.keyframes import Keyframes
from longtake.scheduler.strategies.rolling import Rolling
from longtake.scheduler.strategies.staircase import Prompts
from longtake.scheduler.strategies.stream import StreamBatch
from longtake.scheduler.strategies.windows import Windows

if TYPE_CHECKING:  # at run time they need torch, which `longtake plan` does without
    from longtake.runtime.noise import Noise
    from longtake.runtime.source import Mixing


@dataclass(frozen=True)
class StrategySettings(ABC):
    """What all strategies have."""

    @property
    def told_clean(self) -> float:
        """The noise level told to the model when it evaluates clean blocks."""
        return 0.0

    @abstractmethod
    def strategy_of(self, steps: int) -> Strategy:
        """The writer of schedules for blocks that take so many steps."""

    @property
    def mixing(self) -> Mixing | None:
        """How noise is mixed into the frames of an input video; None: it takes none."""
        return None

    def noise(self, seed: int) -> Noise:
        """Where its noise comes from."""
        from longtake.runtime.noise import SeededNoise

        return SeededNoise(seed)


@dataclass(frozen=True)
class BidirectionalSettings(StrategySettings):
    """All frames jointly."""

    kind: Literal["bidirectional"]

    def strategy_of(self, steps: int) -> Strategy:
        return Bidirectional()


class ToldSettings(StrategySettings):
    """What those have that evaluate clean blocks at a noise level of choice, a field of theirs."""

    context_timestep: float

    def __post_init__(self) -> None:
        if not 0 <= self.context_timestep <= 1000:
            raise UserError(
                f"strategy.context_timestep must be within 0 .. 1000, got {self.context_timestep:g}"
            )

    @property
    def told_clean(self) -> float:
        return self.context_timestep


@dataclass(frozen=True)
class CausalSettings(ToldSettings):
    """Block by block; see `scheduler.retention.Retention`."""

    kind: Literal["causal"]
    window: int | None
    sink: int
    positions: Positions
    recache: bool
    keep_sink: bool
    context_timestep: float

    def strategy_of(self, steps: int) -> Strategy:
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

    def strategy_of(self, steps: int) -> Strategy:
        retention = Retention(self.window, self.sink, self.positions, recache=False)
        return Cascade(retention, self.in_flight, self.lead, self.sees)


@dataclass(frozen=True)
class ClipSettings(StrategySettings):
    """Clips side by side; see `scheduler.strategies.clip`."""

    kind: Literal["clip"]
    clip_frames: int | None
    clips: int | None
    halo: int | None
    global_frames: int
    bias: float
    switch: float
    repeats: bool
    blend: int
    shuffle: int | None

    def strategy_of(self, steps: int) -> Strategy:
        scopes = Scopes(self.halo, self.global_frames, self.bias, self.switch, self.repeats)
        return Clip(scopes, self.clip_frames, self.clips, self.blend)

    def noise(self, seed: int) -> Noise:
        from longtake.runtime.noise import RescheduledNoise

        if self.shuffle is None:
            return super().noise(seed)
        return RescheduledNoise(seed, self.shuffle)


@dataclass(frozen=True)
class DeepSettings(StrategySettings):
    """A deep sink and chosen tokens; see `scheduler.deep_retention`."""

    kind: Literal["deep"]
    window: int
    budget: int
    sink: int
    recent: int

    def strategy_of(self, steps: int) -> Strategy:
        return Causal(DeepRetention(self.window, self.budget, self.sink, self.recent))


@dataclass(frozen=True)
class RollingSettings(ToldSettings):
    """A window of falling levels; see `scheduler.strategies.rolling`."""

    kind: Literal["rolling"]
    window: int | None
    sink: int
    positions: Positions
    in_flight: int
    prompts: Prompts
    context_timestep: float

    def strategy_of(self, steps: int) -> Strategy:
        retention = Retention(self.window, self.sink, self.positions, recache=False)
        return Rolling(retention, self.in_flight, self.prompts)


@dataclass(frozen=True)
class BufferSettings(StrategySettings):
    """A moving buffer; see `scheduler.strategies.buffer`."""

    kind: Literal["buffer"]
    in_flight: int
    references: int
    prompts: Prompts

    def strategy_of(self, steps: int) -> Strategy:
        return Buffer(self.in_flight, self.references, self.prompts)


@dataclass(frozen=True)
class ChunksSettings(ToldSettings):
    """Chunks at a steady pace; see `scheduler.strategies.chunks`."""

    kind: Literal["chunks"]
    ranges: tuple[int | None, ...]
    sink: int
    positions: Positions
    clean_range: int | None
    clean_text: Literal["empty", "prompt"]
    context_timestep: float

    def strategy_of(self, steps: int) -> Strategy:
        return Chunks(self.ranges, self.sink, self.positions, self.clean_range, self.clean_text)


@dataclass(frozen=True)
class KeyframesSettings(ToldSettings):
    """Coarse to fine; see `scheduler.strategies.keyframes`."""

    kind: Literal["keyframes"]
    levels: int | None
    fanout: int
    positions: Literal["spaced", "adjacent"]
    context_timestep: float

    def strategy_of(self, steps: int) -> Strategy:
        return Keyframes(self.levels, self.fanout, self.positions)


@dataclass(frozen=True)
class WindowsSettings(StrategySettings):
    """Overlapping windows; see `scheduler.strategies.windows`."""

    kind: Literal["windows"]
    length: int
    stride: int
    shuffle: int | None

    def strategy_of(self, steps: int) -> Strategy:
        return Windows(self.length, self.stride)

    def noise(self, seed: int) -> Noise:
        from longtake.runtime.noise import RescheduledNoise

        if self.shuffle is None:
            return super().noise(seed)
        return RescheduledNoise(seed, self.shuffle, self.length)


@dataclass(frozen=True)
class DualSettings(StrategySettings):
    """A queue of blocks in the stages; see `scheduler.strategies.dual`."""

    kind: Literal["dual"]
    frames: int
    context: int

    def strategy_of(self, steps: int) -> Strategy:
        return Dual(self.frames, self.context)

    def noise(self, seed: int) -> Noise:
        from longtake.runtime.noise import PooledNoise

        return PooledNoise(seed, self.frames, self.context)


@dataclass(frozen=True)
class StreamSettings(StrategySettings):
    """One block at every step; see `scheduler.strategies.stream` and `runtime.source.Mixing`."""

    kind: Literal["stream"]
    window: int | None
    sink: int
    positions: Positions
    together: int
    apart: int
    likeness: float
    noise_scale: float
    motion: float
    told_less: int
    normalise: bool

    def strategy_of(self, steps: int) -> Strategy:
        retention = Retention(self.window, self.sink, self.positions, recache=False)
        return StreamBatch(retention, steps, self.together, self.apart, self.likeness)

    @property
    def mixing(self) -> Mixing:
        from longtake.runtime.source import Mixing

        return Mixing(self.noise_scale, self.motion, self.told_less, self.normalise)


@dataclass(frozen=True)
class MemFlowSettings(StrategySettings):
    """A bank of frames, scored by the prompt; see `scheduler.bank_retention`."""

    kind: Literal["memflow"]
    window: int
    sink: int
    bank: int
    every: int
    active: int | None
    recache: bool

    def strategy_of(self, steps: int) -> Strategy:
        return Causal(
            BankRetention(self.window, self.sink, self.bank, self.every, self.active, self.recache)
        )


AnyStrategy = (
    BidirectionalSettings
    | CausalSettings
    | CascadeSettings
    | ClipSettings
    | WindowsSettings
    | DeepSettings
    | MemFlowSettings
    | RollingSettings
    | BufferSettings
    | ChunksSettings
    | KeyframesSettings
    | DualSettings
    | StreamSettings
)
