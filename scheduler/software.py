"""What a software makes of a device: which kernels it launches, and how well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from longtake.scheduler.geometry import ModelSpec

DTYPES = {1: "float8", 2: "bfloat16", 4: "float32"}


@dataclass(frozen=True)
class Software:
    """A way to run a model.

    Attributes:
        attention: the best kernel that it has: `flash-2` or `flash-3`.
        fused: elementwise kernels are fused, by a compiler or by hand.
        linear: dtype of matrix products where it isn't that of the activations, such as `float8`.
        vae: its dtype there.
        hides: what travels between its workers while they compute: nothing, what goes around a
            ring, or everything that a layer exchanges.
        synchronises: its host waits for the device in every layer, so it can't launch ahead.
        parallel_vae: all workers decode, each a share of the picture.
        efficiency: by device: its kernels against the shares of the peak in `Efficiency`.
        floor: its launch floor against the device's, which is that of an eager PyTorch.
    """

    name: str = "longtake"
    attention: str = "flash-2"
    fused: bool = False
    linear: str | None = None
    vae: Literal["float32", "bfloat16"] = "float32"
    hides: Literal["nothing", "ring", "all"] = "ring"
    synchronises: bool = False
    parallel_vae: bool = False
    efficiency: Mapping[str, float] = field(default_factory=dict)
    floor: float = 1.0

    def on(self, device: str) -> float:
        """Its efficiency on a device; 1 where it is not known."""
        return self.efficiency.get(device, 1.0)

    def layer_bytes(self, spec: ModelSpec, itemsize: int) -> float:
        """Bytes that a layer moves besides matrices, for each token and channel.

        Counted over `runtime.wan_transformer`, one kernel for each operation: norms, gates and
        rotations go through float32 (the constant), all else is read and written in the dtype of
        the activations. Fused, a result is written once and read once by whoever needs it.
        """
        hidden = spec.ffn_dim / spec.width
        if self.fused:
            return 24 + itemsize * (24 + 2 * hidden)
        return 184 + itemsize * (49 + 4 * hidden)


LONGTAKE = Software()
