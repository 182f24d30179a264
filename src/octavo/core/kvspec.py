"""What one layer keeps per token. Layers of equal spec share one block table: a KV group."""

from __future__ import annotations

from typing import Literal

import msgspec

BLOCK_SIZE = 16
"""Tokens per block: the octavo's sixteen pages. One size everywhere keeps hashes and tables comparable."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SCALED = {"int8": 1, "float8_e4m3fn": 1}
"""Bytes of what keeps keys, and values, beside one float32 scale per token and head."""
KV_DTYPE_BYTES = DTYPE_BYTES | SCALED
KV_DTYPES = {"fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn"}
"""Operators' names of dtypes that torch calls otherwise."""
SCALE_BYTES = 4
"""Of one scale."""


class KVSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Keys and values of one layer.

    `kind` "full" sees all earlier tokens, "window" the last `window` tokens (its own included). "latent" (one
    compressed vector per token) and "state" (a fixed-size recurrent state per sequence) have their row here and no
    layer that asks for them yet.
    """

    kind: Literal["full", "window", "latent", "state"] = "full"
    num_kv_heads: int
    head_dim: int
    dtype: str = "float32"
    """Of what is kept: a row of `KV_DTYPE_BYTES`."""
    window: int | None = None

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys plus values, scales included, that one token costs in this layer."""
        per_head = self.head_dim * KV_DTYPE_BYTES[self.dtype]
        return 2 * self.num_kv_heads * (per_head + (SCALE_BYTES if self.dtype in SCALED else 0))


class KVGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Layers that share a block table, and how many blocks their pool has.

    Block 0 of every group is the null block: it is never handed out, and stands in tables where a window has passed.
    `num_blocks` counts it.
    """

    spec: KVSpec
    layers: tuple[int, ...]
    num_blocks: int = 0

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block over all layers of the group."""
        return self.spec.bytes_per_token * BLOCK_SIZE * len(self.layers)


def group_layers(specs: tuple[KVSpec, ...]) -> tuple[KVGroup, ...]:
    """Group layers by equal spec; full attention first, then in order of first appearance."""
    by_spec: dict[KVSpec, list[int]] = {}
    for layer, spec in enumerate(specs):
        by_spec.setdefault(spec, []).append(layer)
    ordered = sorted(by_spec, key=lambda spec: spec.kind != "full")
    return tuple(KVGroup(spec=spec, layers=tuple(by_spec[spec])) for spec in ordered)
