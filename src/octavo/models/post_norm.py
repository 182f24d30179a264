"""The encoder that BERT began (https://arxiv.org/abs/1810.04805): learned positions, a norm after each sum.

A family's own file says what its config means. Shape letters: T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import KVSpec
from octavo.kernels.attention.base import EVERYTHING
from octavo.kernels.registry import ACTIVATE
from octavo.layers.attention import Attention, AttentionShape, LayerCaches, Step
from octavo.layers.build import Build, Weight
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm
from octavo.layers.prompts import PromptBlocks
from octavo.models.encoder_facts import EncoderFacts


class Block:
    """x = norm(x + attention(x)); x = norm(x + mlp(x))."""

    def __init__(self, build: Build, facts: EncoderFacts) -> None:
        size, inner, eps = facts.hidden_size, facts.intermediate_size, facts.rms_eps
        shape = AttentionShape(
            hidden_size=size,
            num_heads=facts.num_heads,
            scale=facts.head_dim**-0.5,
            qkv_bias=True,
            output_bias=True,
            ahead=EVERYTHING,
            inputs=("self.query", "self.key", "self.value"),
            output="output.dense",
        )
        spec = KVSpec(num_kv_heads=facts.num_heads, head_dim=facts.head_dim, dtype=build.dtype_name)
        self.attention = Attention(build.at("attention"), shape, spec, layer=0, group=0)
        self.attention_norm = LayerNorm(build.at("attention.output.LayerNorm"), size, eps)
        self.up = Linear(build, (("intermediate.dense", inner),), size, has_bias=True)
        self.down = Linear(build, (("output.dense", size),), inner, has_bias=True)
        self.mlp_norm = LayerNorm(build.at("output.LayerNorm"), size, eps)
        self._curve = facts.curve
        self._activate = build.dispatch.choose(ACTIVATE, build.case(inner))

    def __call__(self, x_TD: torch.Tensor, step: Step) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        x_TD = self.attention_norm.add(self.attention(x_TD, step), x_TD)[0]
        inner_TI = self._activate(self.up(x_TD), self._curve)
        return self.mlp_norm.add(self.down(inner_TI), x_TD)[0]


class PostNormEncoder:
    """Tables of words, positions and types, a norm, blocks."""

    def __init__(self, facts: EncoderFacts, build: Build) -> None:
        self.facts = facts
        self._weights = build.weights
        size = facts.hidden_size
        trunk = build.at(facts.weight_prefix.removesuffix("."))
        tables = trunk.at("embeddings")
        self.words = Embedding(tables.at("word_embeddings"), facts.vocab_size, size)
        rows = facts.max_position_embeddings
        self.positions = Embedding(tables.at("position_embeddings"), rows, size)
        self.types = Embedding(tables.at("token_type_embeddings"), facts.num_types, size)
        self.norm = LayerNorm(tables.at("LayerNorm"), size, facts.rms_eps)
        self.blocks = tuple(
            Block(trunk.at(f"encoder.layer.{i}"), facts) for i in range(facts.num_layers)
        )
        self._prompts = PromptBlocks(facts.num_heads, facts.head_dim, build.dtype, build.device)
        for table in (self.words, self.positions, self.types):
            build.finishers.append(table.own)

    def weight_map(self) -> Mapping[str, Weight]:
        """Checkpoint name -> where that tensor goes; empty once loaded."""
        return self._weights

    def kv_specs(self) -> tuple[KVSpec, ...]:
        """Nothing is kept."""
        return ()

    def forward(self, batch: ForwardBatch, kv: LayerCaches) -> torch.Tensor:
        """Hidden states [T, D]; each slice is a whole prompt."""
        batch = replace(batch, groups=(self._prompts.lay_out(batch),))
        none_TK = torch.empty(batch.num_tokens, 0, device=batch.token_ids_T.device)
        step = Step(batch=batch, kv=self._prompts, cos_TK=none_TK, sin_TK=none_TK)
        x_TD = self.words(batch.token_ids_T)
        x_TD += self.positions(batch.positions_T + self.facts.position_offset)
        types_T = batch.type_ids_T
        if types_T is None or self.facts.num_types == 1:
            types_T = torch.zeros_like(batch.token_ids_T)
        x_TD += self.types(types_T)
        x_TD = self.norm(x_TD)
        for block in self.blocks:
            x_TD = block(x_TD, step)
        return x_TD
