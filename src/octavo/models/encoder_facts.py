"""Facts of encoders: every token of a prompt sees every other, so a prompt goes through whole and nothing is kept. No torch."""

from __future__ import annotations

import math

from octavo.core.kvspec import DTYPE_BYTES, KVSpec
from octavo.kernels.curves import Curve
from octavo.layers.rope_spec import RopeSpec
from octavo.models.facts import ModelFacts


class EncoderFacts(ModelFacts, frozen=True, kw_only=True):
    """What differs from a decoder. `rms_eps` is the layer norms' eps, `mlp_bias` and `qkv_bias` mean what they say.

    `windows` counts the tokens that a layer sees to either side, its own included.
    """

    curve: Curve
    num_types: int = 0
    """Rows of the token type table; 0: none."""
    position_offset: int = 0
    """Row of the position table that the first token has."""
    has_positions: bool = True
    """Whether there is a position table; else positions are rotations."""
    is_gated: bool = False
    norm_bias: bool = True
    local_rope: RopeSpec | None = None
    """Of the layers with a window."""

    @property
    def sees_whole_prompts(self) -> bool:
        """Always."""
        return True

    @property
    def max_context(self) -> int:
        """Longest prompt for which there are positions."""
        return self.max_position_embeddings - self.position_offset

    @property
    def num_linear_parameters(self) -> int:
        """Those of the layers' matrices."""
        size, inner = self.hidden_size, self.intermediate_size
        return self.num_layers * (4 * size * size + (2 + self.is_gated) * size * inner)

    @property
    def num_parameters(self) -> int:
        """Weights held in memory."""
        size, inner = self.hidden_size, self.intermediate_size
        norm = size * (1 + self.norm_bias)
        biases = 3 * size * self.qkv_bias + size * self.output_bias
        biases += (size + (1 + self.is_gated) * inner) * self.mlp_bias
        tables = (
            self.vocab_size + self.num_types + self.max_position_embeddings * self.has_positions
        )
        # A norm after the tables and two per layer; with rotations the first is another's place and one comes last.
        norms = norm * (1 + 2 * self.num_layers)
        pooler = 0 if self.pooling is None else self.pooling.num_parameters
        per_layers = self.num_linear_parameters + self.num_layers * biases
        return per_layers + tables * size + norms + pooler

    def activation_bytes(self, num_tokens: int, dtype: str, *, num_logits: int = 1) -> int:
        """As a decoder's; keys and values of a step lie in blocks, of which each prompt fills its last in part."""
        width = DTYPE_BYTES[dtype]
        inner = (2 + self.is_gated) * self.intermediate_size
        per_token = (3 * self.hidden_size + max(inner, 4 * self.hidden_size)) * width
        blocks = 2 * self.hidden_size * width * (num_tokens + 16 * num_logits)
        return math.ceil(1.25 * num_tokens * per_token) + blocks

    def kv_specs(self, dtype: str) -> tuple[KVSpec, ...]:
        """Nothing is kept."""
        return ()
