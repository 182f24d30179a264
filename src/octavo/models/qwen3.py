"""Qwen3, dense (https://arxiv.org/abs/2505.09388). No torch."""

from __future__ import annotations

from msgspec.structs import replace

from octavo.models.config import Config
from octavo.models.dense_config import read_dense, switched_windows, trunk_facts
from octavo.models.facts import ModelFacts
from octavo.models.pooling_config import decoder_classifier, decoder_embedder

DEFAULT_HEAD_DIM = 128
"""Of a config without the key; it is not hidden_size / num_attention_heads."""


def read(config: Config) -> ModelFacts:
    """Queries and keys pass an RMS norm per head; one switch for all four attention biases."""
    has_bias = config.boolean("attention_bias", default=False)
    return replace(
        read_dense(config, switched_windows(config), default_head_dim=DEFAULT_HEAD_DIM),
        qkv_bias=has_bias,
        output_bias=has_bias,
        qk_norm=True,
    )


def read_embedder(config: Config) -> ModelFacts:
    """The trunk alone, with the last token's hidden state for an embedding."""
    return trunk_facts(read(config), decoder_embedder(config))


def read_classifier(config: Config) -> ModelFacts:
    """Logits from the last token's hidden state."""
    return trunk_facts(read(config), decoder_classifier(config))
