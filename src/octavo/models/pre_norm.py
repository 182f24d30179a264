"""The encoder of ModernBERT (https://arxiv.org/abs/2412.13663): rotations, a norm before each part, windows in most layers.

Shape letters: T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import KVSpec
from octavo.kernels.attention.base import EVERYTHING
from octavo.kernels.registry import ACTIVATE_AND_MUL
from octavo.layers.attention import Attention, AttentionShape, LayerCaches, Step
from octavo.layers.build import Build, Weight
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm
from octavo.layers.prompts import PromptBlocks
from octavo.layers.rope import Rope
from octavo.models.encoder_facts import EncoderFacts


class Block:
    """x += attention(norm(x)); x += mlp(norm(x)). The first block's attention takes x as it is."""

    def __init__(self, build: Build, facts: EncoderFacts, *, layer: int) -> None:
        size, inner, window = facts.hidden_size, facts.intermediate_size, facts.windows[layer]
        shape = AttentionShape(
            hidden_size=size,
            num_heads=facts.num_heads,
            scale=facts.head_dim**-0.5,
            qkv_bias=facts.qkv_bias,
            output_bias=facts.output_bias,
            ahead=EVERYTHING if window is None else window - 1,
            inputs=("Wqkv",),
            output="Wo",
        )
        spec = KVSpec(
            kind="full" if window is None else "window",
            num_kv_heads=facts.num_heads,
            head_dim=facts.head_dim,
            dtype=build.dtype_name,
            window=window,
        )

        def norm(name: str) -> LayerNorm:
            return LayerNorm(build.at(name), size, facts.rms_eps, has_bias=facts.norm_bias)

        self.is_local = window is not None
        self.attention_norm = norm("attn_norm") if layer else None
        self.attention = Attention(build.at("attn"), shape, spec, layer=0, group=0)
        self.mlp_norm = norm("mlp_norm")
        self.up = Linear(build, (("mlp.Wi", 2 * inner),), size, has_bias=facts.mlp_bias)
        self.down = Linear(build, (("mlp.Wo", size),), inner, has_bias=facts.mlp_bias)
        self._curve = facts.curve
        self._activate = build.dispatch.choose(ACTIVATE_AND_MUL, build.case(inner))

    def __call__(
        self, x_TD: torch.Tensor, residual_TD: torch.Tensor | None, step: Step
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, residual) -> (x, residual), all [T, D]; the hidden state is their sum."""
        if residual_TD is None or self.attention_norm is None:
            residual_TD = x_TD
        else:
            x_TD, residual_TD = self.attention_norm.add(x_TD, residual_TD)
        x_TD, residual_TD = self.mlp_norm.add(self.attention(x_TD, step), residual_TD)
        return self.down(self._activate(self.up(x_TD), self._curve)), residual_TD


class PreNormEncoder:
    """A table of words, a norm, blocks, a norm."""

    def __init__(self, facts: EncoderFacts, build: Build) -> None:
        self.facts = facts
        self._weights = build.weights
        size, eps, has_bias = facts.hidden_size, facts.rms_eps, facts.norm_bias
        trunk = build.at(facts.weight_prefix.removesuffix("."))
        self.words = Embedding(trunk.at("embeddings.tok_embeddings"), facts.vocab_size, size)
        build.finishers.append(self.words.own)
        self.first_norm = LayerNorm(trunk.at("embeddings.norm"), size, eps, has_bias=has_bias)
        self.blocks = tuple(
            Block(trunk.at(f"layers.{i}"), facts, layer=i) for i in range(facts.num_layers)
        )
        self.norm = LayerNorm(trunk.at("final_norm"), size, eps, has_bias=has_bias)
        self.rope = Rope(facts.rope, facts.head_dim, build.device)
        self.local_rope = Rope(facts.local_rope or facts.rope, facts.head_dim, build.device)
        self._prompts = PromptBlocks(facts.num_heads, facts.head_dim, build.dtype, build.device)

    def weight_map(self) -> Mapping[str, Weight]:
        """Checkpoint name -> where that tensor goes; empty once loaded."""
        return self._weights

    def kv_specs(self) -> tuple[KVSpec, ...]:
        """Nothing is kept."""
        return ()

    def forward(self, batch: ForwardBatch, kv: LayerCaches) -> torch.Tensor:
        """Hidden states [T, D] after the last norm; each slice is a whole prompt."""
        batch = replace(batch, groups=(self._prompts.lay_out(batch),))
        steps = []
        for rope in (self.rope, self.local_rope):
            cos_TK, sin_TK = rope(batch.positions_T)
            steps.append(Step(batch=batch, kv=self._prompts, cos_TK=cos_TK, sin_TK=sin_TK))
        x_TD = self.first_norm(self.words(batch.token_ids_T))
        residual_TD: torch.Tensor | None = None
        for block in self.blocks:
            x_TD, residual_TD = block(x_TD, residual_TD, steps[block.is_local])
        assert residual_TD is not None, "there is a layer"
        return self.norm.add(x_TD, residual_TD)[0]
