"""Self-attention over the paged cache. Shape letters: T tokens, H heads, G kv heads, D head dim, M hidden."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import KVSpec
from octavo.kernels.attention.base import AttentionBackend, AttentionCase
from octavo.kernels.attention.registry import ATTENTION
from octavo.kernels.kv import KVTensors
from octavo.kernels.ops import QkNorm
from octavo.kernels.registry import ATTENTION_INPUTS
from octavo.kernels.rounded import Rounded
from octavo.layers.build import Build
from octavo.layers.linear import Linear
from octavo.layers.parts import OUTPUT, QKV


class LayerCaches(Protocol):
    """Where a model finds its layers' keys and values; `cache.pool.KVPool` is one."""

    def layer(self, index: int) -> KVTensors:
        """Keys and values of a layer, written in place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What every attention layer of one forward shares. Made by the model, dropped when forward returns."""

    batch: ForwardBatch
    kv: LayerCaches
    cos_TK: torch.Tensor
    sin_TK: torch.Tensor
    _plans: dict[tuple[int, int], Any] = field(default_factory=dict)

    def plan(self, backend: AttentionBackend[Any], group: int, spec: KVSpec) -> Any:
        """The backend's plan for a KV group, made when its first layer asks."""
        key = (id(backend), group)
        if key not in self._plans:
            kept = self.batch.plans
            plan = backend.plan(self.batch, group, spec) if kept is None else None
            self._plans[key] = plan if kept is None else kept.plan(backend, group, spec)
        return self._plans[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """What distinguishes one model's attention from another's."""

    hidden_size: int
    num_heads: int
    scale: float
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm_eps: float | None = None
    """Set: queries and keys pass an RMS norm per head before the rotation."""
    soft_cap: float | None = None
    ahead: int = 0
    """Tokens after its own that each token sees; encoders set it."""
    inputs: tuple[str, ...] = QKV
    """Checkpoint names of the projections to queries, keys and values, or of the one that is all three."""
    output: str = OUTPUT


class Attention:
    """Project, (norm,) rotate, store, attend, project."""

    def __init__(
        self, build: Build, shape: AttentionShape, spec: KVSpec, *, layer: int, group: int
    ) -> None:
        heads, kv_heads, dim = shape.num_heads, spec.num_kv_heads, spec.head_dim
        self.layer, self.group, self.spec = layer, group, spec
        sizes = (heads * dim, kv_heads * dim, kv_heads * dim)
        merged = sizes if len(shape.inputs) == len(sizes) else (sum(sizes),)
        parts = tuple(zip(shape.inputs, merged, strict=True))
        self.qkv = Linear(build, parts, shape.hidden_size, has_bias=shape.qkv_bias)
        out = ((shape.output, shape.hidden_size),)
        self.out = Linear(build, out, heads * dim, has_bias=shape.output_bias)
        self.norms: QkNorm | None = None
        if shape.qk_norm_eps is not None:
            q_weight_D = build.parameter("q_norm.weight", dim, init="ones")
            k_weight_D = build.parameter("k_norm.weight", dim, init="ones")
            self.norms = QkNorm(q_weight_D, k_weight_D, shape.qk_norm_eps)
        case = AttentionCase(
            device=build.device.type,
            dtype=build.dtype_name,
            cache_dtype=spec.dtype,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            scale=shape.scale,
            window=spec.window,
            ahead=shape.ahead,
            soft_cap=shape.soft_cap,
            is_invariant=build.is_invariant,
        )
        self.backend = build.dispatch.choose(ATTENTION, case)
        self._prepare = build.dispatch.choose(ATTENTION_INPUTS, build.case(heads, kv_heads, dim))

    def __call__(self, x_TM: torch.Tensor | Rounded, step: Step) -> torch.Tensor:
        """[T, M] -> [T, M]; the tokens' keys and values are in the cache afterwards."""
        cache = step.kv.layer(self.layer)
        slots_T = step.batch.groups[self.group].slots_T
        angles = (step.cos_TK, step.sin_TK)
        q_THD = self._prepare(self.qkv(x_TM), self.norms, angles, slots_T, cache)
        plan = step.plan(self.backend, self.group, self.spec)
        return self.out(self.backend.run(q_THD, cache, plan).flatten(1))
