"""Who can compute attention here: all backends behind one contract, chosen by what they can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from longtake.kernels import attention_operators as operators
from longtake.kernels import attention_packages as packages
from longtake.scheduler.errors import UserError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)

Run = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
Supports = Callable[[torch.device, torch.dtype, int], str | None]


@dataclass(frozen=True)
class Backend:
    """One way to compute attention.

    Attributes:
        name: what a user calls it by.
        supports: (device, dtype, head size) -> why it cannot, or None if it can.
        run: as `longtake.kernels.attention_operators` describes. Call it through
            `longtake.kernels.attention.attention_with_lse`, which sees to rows without keys.
        takes_mask: whether `run` takes a mask.
        without_lse: why it returns no log-sum-exp that could be merged; None: it does return one.
    """

    name: str
    supports: Supports
    run: Run
    takes_mask: bool = False
    without_lse: str | None = None

    @property
    def returns_lse(self) -> bool:
        """Whether parts of its attention can be merged, as a ring does."""
        return self.without_lse is None


def _on_cpu(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device.type}"
    return _floating(device, dtype, head_dim) or operators.missing_operator(
        operators.CPU_FLASH, "attn_mask"
    )


def _floating(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return _among(dtype, FLOATS)


def _flexible(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"it runs on the CPU and on CUDA, not on {device.type}"
    return _among(dtype, FLOATS) or operators.missing_flex()


def _torch_on_cuda(
    operator: tuple[str, ...],
    dtypes: tuple[torch.dtype, ...],
    torch_says: Callable[[torch.backends.cuda.SDPAParams, bool], bool],
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
) -> str | None:
    """torch itself is asked what the kernel takes on this GPU, of the head size and dtype."""
    reason = _off_cuda(device) or _among(dtype, dtypes) or operators.missing_operator(*operator)
    if reason is not None:
        return reason
    few = torch.empty(1, 1, 2, head_dim, device=device, dtype=dtype)
    call = torch.backends.cuda.SDPAParams(few, few, few, None, 0.0, False, False)
    with torch.cuda.device(device):
        if torch_says(call, False):
            return None
    return f"torch refuses it on this GPU for heads of {head_dim} in {_short(dtype)}"


def _package_on_cuda(
    function: tuple[str, str],
    argument: str,
    dtypes: tuple[torch.dtype, ...],
    generations: range,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
) -> str | None:
    """For packages that cannot be asked; `generations` are major compute capabilities."""
    reason = _off_cuda(device) or _among(dtype, dtypes)
    if reason is not None:
        return reason
    if head_dim * dtype.itemsize % 16 or head_dim > 256:
        multiple = 16 // dtype.itemsize
        return f"it takes head sizes up to 256 in steps of {multiple}, not {head_dim}"
    major, minor = torch.cuda.get_device_capability(device)
    if major not in generations:
        legal = f"{generations.start} to {generations.stop - 1}"
        return f"it needs a GPU of major compute capability {legal}, this is {major}.{minor}"
    return packages.missing_function(*function, argument)


def _off_cuda(device: torch.device) -> str | None:
    return None if device.type == "cuda" else f"it runs on CUDA, not on {device.type}"


def _among(dtype: torch.dtype, legal: tuple[torch.dtype, ...]) -> str | None:
    if dtype in legal:
        return None
    return f"it takes {', '.join(map(_short, legal))}, not {_short(dtype)}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# In order of preference. Those behind "portable", which is capable of everything, run only by name.
BACKENDS = (
    Backend(
        "flash-attention-3",
        partial(_package_on_cuda, packages.FLASH_3, "return_attn_probs", HALVES, range(9, 10)),
        packages.flash_3,
    ),
    Backend(
        "cudnn",
        partial(
            _torch_on_cuda,
            (operators.CUDNN, "attn_bias", "compute_log_sumexp"),
            HALVES,
            torch.backends.cuda.can_use_cudnn_attention,
        ),
        operators.cudnn,
    ),
    Backend(
        "cuda-flash",
        partial(
            _torch_on_cuda,
            (operators.CUDA_FLASH,),
            HALVES,
            torch.backends.cuda.can_use_flash_attention,
        ),
        operators.cuda_flash,
    ),
    Backend(
        "flash-attention-2",
        partial(_package_on_cuda, packages.FLASH_2, "return_attn_probs", HALVES, range(8, 13)),
        packages.flash_2,
    ),
    Backend(
        "efficient",
        partial(
            _torch_on_cuda,
            (operators.EFFICIENT, "attn_bias", "compute_log_sumexp"),
            FLOATS,
            torch.backends.cuda.can_use_efficient_attention,
        ),
        operators.efficient,
        takes_mask=True,
    ),
    Backend(
        "xformers",
        partial(_package_on_cuda, packages.XFORMERS, "attn_bias", FLOATS, range(8, 13)),
        packages.xformers,
    ),
    Backend("cpu-flash", _on_cpu, operators.cpu_flash, takes_mask=True),
    Backend("portable", _floating, operators.portable, takes_mask=True),
    Backend("flex", _flexible, operators.flex, takes_mask=True),
    Backend(
        "sdpa",
        _floating,
        operators.sdpa,
        takes_mask=True,
        without_lse="torch keeps it to itself",
    ),
    Backend(
        "math",
        _floating,
        operators.math,
        takes_mask=True,
        without_lse="its second result is the matrix of probabilities",
    ),
    Backend(
        "sage",
        partial(_package_on_cuda, packages.SAGE, "tensor_layout", HALVES, range(8, 13)),
        packages.sage,
        without_lse="each part is shifted by the mean of its own keys",
    ),
)


def backends() -> tuple[Backend, ...]:
    """All backends, the preferred first, whether or not they can run here."""
    return BACKENDS


@cache  # it is asked in every layer, and what a device can do stays as it is
def refusal(
    backend: Backend,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    need_lse: bool,
    need_mask: bool = False,
) -> str | None:
    """Why a backend cannot do what is asked, or None if it can."""
    if need_lse and not backend.returns_lse:
        return f"it returns no log-sum-exp to merge parts by: {backend.without_lse}"
    if need_mask and not backend.takes_mask:
        return "it takes no mask"
    return backend.supports(device, dtype, head_dim)


def choose(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    need_lse: bool,
    need_mask: bool = False,
    name: str | None = None,
) -> Backend:
    """The preferred backend that is capable, or the one of this name if it is.

    Args:
        need_lse: whether parts are to be merged, as in a ring.

    Raises:
        UserError: there is no such backend, or it is not capable; the reason is told, with the
            names of those that are.
    """
    asked = device, dtype, head_dim, need_lse, need_mask
    capable = [backend for backend in BACKENDS if refusal(backend, *asked) is None]
    if not capable:
        raise UserError(
            f"no attention backend takes {_short(dtype)}; legal: {', '.join(map(_short, FLOATS))}"
        )
    if name is None:
        return capable[0]
    named = next((backend for backend in BACKENDS if backend.name == name), None)
    reason = "there is none of that name" if named is None else refusal(named, *asked)
    if named is None or reason is not None:
        raise UserError(
            f"attention backend {name!r} cannot be used: {reason}; legal here: "
            f"{', '.join(backend.name for backend in capable)}"
        )
    return named
