"""The dense pre-norm decoder that most families are: attention and a gated MLP, each after an RMS norm.

A family's own file says what its config means; what differs between families arrives here as facts. Shape letters:
T tokens, N rows, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import KVSpec, group_layers
from octavo.layers.attention import (
    Attention,
    AttentionShape,
    LayerCaches,
    Look,
    Parts,
    Step,
    through,
)
from octavo.layers.build import Build, Weight
from octavo.layers.embedding import Embedding
from octavo.layers.head import Head
from octavo.layers.mlp import GatedMlp
from octavo.layers.norm import RmsNorm
from octavo.layers.rope import Rope
from octavo.models.facts import ModelFacts


class Block:
    """x += attention(norm(x)); x += mlp(norm(x)). The sums are carried as `residual` and fused into the norms."""

    def __init__(
        self, build: Build, facts: ModelFacts, spec: KVSpec, *, layer: int, group: int
    ) -> None:
        shape = AttentionShape(
            hidden_size=facts.hidden_size,
            num_heads=facts.num_heads,
            scale=facts.head_dim**-0.5,
            qkv_bias=facts.qkv_bias,
            output_bias=facts.output_bias,
            qk_norm_eps=facts.rms_eps if facts.qk_norm else None,
        )
        size, eps = facts.hidden_size, facts.rms_eps
        self.attention_norm = RmsNorm(build.at("input_layernorm"), size, eps)
        self.attention = Attention(build.at("self_attn"), shape, spec, layer=layer, group=group)
        self.mlp_norm = RmsNorm(build.at("post_attention_layernorm"), size, eps)
        self.mlp = GatedMlp(build.at("mlp"), size, facts.intermediate_size, has_bias=facts.mlp_bias)
        self.attention_norm.feed(build, self.attention.qkv.rounds_rows)
        self.mlp_norm.feed(build, self.mlp.gate_up.rounds_rows)

    def parts(
        self, x_TD: torch.Tensor, residual_TD: torch.Tensor | None, step: Step
    ) -> Generator[Look, None, tuple[torch.Tensor, torch.Tensor]]:
        """(x, residual) -> (x, residual), all [T, D]; the hidden state is their sum."""
        normed_TD, residual_TD = self.attention_norm.add_for(x_TD, residual_TD)
        x_TD = yield from self.attention.parts(normed_TD, step)
        normed_TD, residual_TD = self.mlp_norm.add_for(x_TD, residual_TD)
        return self.mlp(normed_TD), residual_TD


class DenseTrunk:
    """Embedding, blocks, norm: all but the head, which is all that a pooling model needs."""

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        self.facts = facts
        self._weights = build.weights
        self._specs = facts.kv_specs(build.kv_dtype_name)
        groups = group_layers(self._specs)
        group_of = {layer: i for i, group in enumerate(groups) for layer in group.layers}
        self.embed = Embedding(build.at("model.embed_tokens"), facts.vocab_size, facts.hidden_size)
        self.rope = Rope(facts.rope, facts.head_dim, build.device)
        self.blocks = tuple(
            Block(build.at(f"model.layers.{i}"), facts, spec, layer=i, group=group_of[i])
            for i, spec in enumerate(self._specs)
        )
        self.norm = RmsNorm(build.at("model.norm"), facts.hidden_size, facts.rms_eps)

    def weight_map(self) -> Mapping[str, Weight]:
        """Checkpoint name -> where that tensor goes; empty once loaded."""
        return self._weights

    def kv_specs(self) -> tuple[KVSpec, ...]:
        """One per layer."""
        return self._specs

    def forward(self, batch: ForwardBatch, kv: LayerCaches) -> torch.Tensor:
        """Hidden states [T, D] after the last norm."""
        return through(self.parts(batch, kv))

    def parts(self, batch: ForwardBatch, kv: LayerCaches) -> Parts:
        """As `forward`, in parts."""
        cos_TK, sin_TK = self.rope(batch.positions_T)
        step = Step(batch=batch, kv=kv, cos_TK=cos_TK, sin_TK=sin_TK)
        x_TD: torch.Tensor = self.embed(batch.token_ids_T)
        residual_TD: torch.Tensor | None = None
        for block in self.blocks:
            x_TD, residual_TD = yield from block.parts(x_TD, residual_TD, step)
        return self.norm.add(x_TD, residual_TD)[0]


class DenseModel(DenseTrunk):
    """The trunk and a head."""

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        super().__init__(facts, build)
        self.head = Head(build.at("lm_head"), self.embed, is_tied=facts.is_tied)

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """[N, D] -> float32 [N, V]."""
        return self.head(hidden_ND)
