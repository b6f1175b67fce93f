"""Where a thread computes beside the main one: on a GPU, a stream of its own.

On one stream the work of both would queue up, and where each also waits for other workers, those
could end up waiting for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.cuda import Event, Stream


class Aside:
    """Enter it in the thread beside; on a CPU it does nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = Stream(device) if device.type == "cuda" else None
        self._before: Stream | None = None

    def hand_over(self, tensor: Tensor) -> Callable[[], Tensor]:
        """In the main thread: a tensor that it has, perhaps, not computed yet.

        The result, called in the thread beside, gives it as soon as it may be used there.
        """
        stream = self._stream
        if stream is None:
            return lambda: tensor
        ready = Event()
        ready.record(torch.cuda.current_stream(self._device))

        def arrive() -> Tensor:
            stream.wait_event(ready)
            tensor.record_stream(stream)
            return tensor

        return arrive

    def settle(self) -> None:
        """In the thread beside: wait until all is computed and sent."""
        if self._stream is not None:
            self._stream.synchronize()

    def __enter__(self) -> Self:
        if self._stream is not None:
            self._before = torch.cuda.current_stream(self._device)
            torch.cuda.set_stream(self._stream)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            torch.cuda.set_stream(self._before)
            self._before = None
