"""Which window a cache policy of causal generation asks for."""

from __future__ import annotations

from longtake.parallel.mesh import Mesh
from longtake.runtime.bank_window import BankWindow
from longtake.runtime.contexts import CausalWindow
from longtake.runtime.deep_window import DeepWindow
from longtake.runtime.linear_window import LinearWindow
from longtake.runtime.wan_transformer import WanTransformer
from longtake.runtime.workers import make_window
from longtake.scheduler.bank_retention import BankRetention
from longtake.scheduler.constant_state import ConstantState
from longtake.scheduler.deep_retention import DeepRetention
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.retention import CachePolicy, Retention
from longtake.scheduler.strategies.causal import Causal


def causal_window(
    transformer: WanTransformer, spec: ModelSpec, strategy: Causal, request: Request, mesh: Mesh
) -> CausalWindow:
    """A worker's window over its cache: its layers, its tokens, its heads, its branches."""
    total = strategy.latent_frames(request, spec)
    policy: CachePolicy = strategy.retention
    if isinstance(policy, DeepRetention):
        return DeepWindow(transformer, spec, policy, total, request, mesh)
    if isinstance(policy, BankRetention):
        return BankWindow(transformer, spec, policy, total, request, mesh)
    if isinstance(policy, ConstantState):
        return LinearWindow(transformer, spec, request, mesh)
    if isinstance(policy, Retention):
        return make_window(transformer, spec, policy, request, total, mesh)
    raise TypeError(f"no window is known for {policy!r}")
