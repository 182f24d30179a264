"""Names and sizes of the matrices in the layers of the dense network, as checkpoints have them. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from octavo.layers.parts import DOWN, GATE_UP, OUTPUT, QKV
from octavo.models.facts import ModelFacts

DENSE = "dense"
"""Row of `models.registry.NETWORKS` whose matrices are known here."""


class Product(NamedTuple):
    """What one product makes of its inputs."""

    names: tuple[str, ...]
    """Of the matrices, stacked along the outputs; without "weight"."""
    num_outputs: tuple[int, ...]
    """Of each."""
    num_inputs: int


def products(facts: ModelFacts) -> Iterator[Product]:
    """Those of all layers, in the order in which layers pack."""
    size, inner = facts.hidden_size, facts.intermediate_size
    queries, keys = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    layer = (
        ("self_attn", QKV, (queries, keys, keys), size),
        ("self_attn", (OUTPUT,), (size,), queries),
        ("mlp", GATE_UP, (inner, inner), size),
        ("mlp", (DOWN,), (size,), inner),
    )
    for i in range(facts.num_layers):
        for part, locals_, num_outputs, num_inputs in layer:
            names = tuple(f"model.layers.{i}.{part}.{name}" for name in locals_)
            yield Product(names, num_outputs, num_inputs)
