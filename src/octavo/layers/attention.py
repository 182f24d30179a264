"""Self-attention over the paged cache. Shape letters: T tokens, H heads, G kv heads, D head dim, M hidden."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import KVSpec
from octavo.kernels.attention.base import AttentionBackend, AttentionCase
from octavo.kernels.attention.registry import ATTENTION
from octavo.kernels.registry import KV_STORE, ROPE
from octavo.layers.build import Build
from octavo.layers.linear import Linear
from octavo.layers.norm import RmsNorm


class LayerCaches(Protocol):
    """Where a model finds its layers' keys and values; `cache.pool.KVPool` is one."""

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(k, v) of a layer, each [num_blocks, BLOCK_SIZE, G, D], written in place."""


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
            self._plans[key] = backend.plan(self.batch, group, spec)
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


class Attention:
    """Project, (norm,) rotate, store, attend, project."""

    def __init__(
        self, build: Build, shape: AttentionShape, spec: KVSpec, *, layer: int, group: int
    ) -> None:
        heads, kv_heads, dim = shape.num_heads, spec.num_kv_heads, spec.head_dim
        self.layer, self.group, self.spec = layer, group, spec
        self._sizes = (heads * dim, kv_heads * dim, kv_heads * dim)
        parts = tuple(zip(("q_proj", "k_proj", "v_proj"), self._sizes, strict=True))
        self.qkv = Linear(build, parts, shape.hidden_size, has_bias=shape.qkv_bias)
        out = (("o_proj", shape.hidden_size),)
        self.out = Linear(build, out, heads * dim, has_bias=shape.output_bias)
        eps = shape.qk_norm_eps
        self.q_norm = None if eps is None else RmsNorm(build.at("q_norm"), dim, eps)
        self.k_norm = None if eps is None else RmsNorm(build.at("k_norm"), dim, eps)
        case = AttentionCase(
            device=build.device.type,
            dtype=build.dtype_name,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            scale=shape.scale,
            window=spec.window,
            soft_cap=shape.soft_cap,
        )
        self.backend = build.dispatch.choose(ATTENTION, case)
        self._rope = build.dispatch.choose(ROPE, build.case(heads, kv_heads, dim))
        self._store = build.dispatch.choose(KV_STORE, build.case(kv_heads, dim))

    def __call__(self, x_TM: torch.Tensor, step: Step) -> torch.Tensor:
        """[T, M] -> [T, M]; the tokens' keys and values are in the cache afterwards."""
        num_tokens, dim = x_TM.shape[0], self.spec.head_dim
        q_TO, k_TO, v_TO = self.qkv(x_TM).split_with_sizes(self._sizes, dim=-1)
        q_THD, k_TGD = q_TO.view(num_tokens, -1, dim), k_TO.view(num_tokens, -1, dim)
        if self.q_norm is not None and self.k_norm is not None:
            q_THD, k_TGD = self.q_norm(q_THD), self.k_norm(k_TGD)
        q_THD, k_TGD = self._rope(q_THD, k_TGD, step.cos_TK, step.sin_TK)
        cache = step.kv.layer(self.layer)
        slots_T = step.batch.groups[self.group].slots_T
        self._store(k_TGD, v_TO.view(num_tokens, -1, dim), cache[0], cache[1], slots_T)
        plan = step.plan(self.backend, self.group, self.spec)
        return self.out(self.backend.run(q_THD, cache, plan).flatten(1))
