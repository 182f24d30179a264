"""Self-attention over the paged cache. Shape letters: T tokens, H heads, G kv heads, D head dim, M hidden."""

from __future__ import annotations

from collections.abc import Generator
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


class Look:
    """Where a network stops being row by row: one layer's queries, and what they find in the cache.

    Each is held only as long as it is needed, so that the parts around it take no more memory than without it.
    """

    __slots__ = ("_out_THD", "_q_THD", "attention", "step")

    def __init__(self, attention: Attention, q_THD: torch.Tensor, step: Step) -> None:
        self.attention = attention
        self.step = step
        self._q_THD: torch.Tensor | None = q_THD
        self._out_THD: torch.Tensor | None = None

    def queries(self) -> torch.Tensor:
        """[T, H, D]; to be asked for once."""
        q_THD, self._q_THD = self._q_THD, None
        assert q_THD is not None, "they were asked for"
        return q_THD

    def make(self) -> None:
        """Look, as the step's plan says."""
        self.give(self.attention.look(self.queries(), self.step))

    def give(self, out_THD: torch.Tensor) -> None:
        """What was found, [T, H, D]."""
        self._out_THD = out_THD

    def taken(self) -> torch.Tensor:
        """What was given; to be asked for once."""
        out_THD, self._out_THD = self._out_THD, None
        assert out_THD is not None, "nobody has looked"
        return out_THD


Parts = Generator[Look, None, torch.Tensor]
"""A network that stops at every `Look`, which is made before it goes on. Between them each row is computed by itself."""


def through(parts: Parts) -> torch.Tensor:
    """All of it, one part after the other."""
    while True:
        try:
            look = next(parts)
        except StopIteration as end:
            result: torch.Tensor = end.value
            return result
        look.make()


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
        return through(self.parts(x_TM, step))

    def parts(self, x_TM: torch.Tensor | Rounded, step: Step) -> Parts:
        """As a call, but whoever goes through the parts makes the look at other rows."""
        cache = step.kv.layer(self.layer)
        slots_T = step.batch.groups[self.group].slots_T
        angles = (step.cos_TK, step.sin_TK)
        q_THD = self._prepare(self.qkv(x_TM), self.norms, angles, slots_T, cache)
        look = Look(self, q_THD, step)
        del x_TM, q_THD
        yield look
        return self.out(look.taken().flatten(1))

    def look(self, q_THD: torch.Tensor, step: Step) -> torch.Tensor:
        """What a `Look` finds: queries [T, H, D] -> outputs [T, H, D]."""
        plan = step.plan(self.backend, self.group, self.spec)
        return self.backend.run(q_THD, step.kv.layer(self.layer), plan)
