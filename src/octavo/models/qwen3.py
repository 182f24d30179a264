"""Qwen3, dense (https://arxiv.org/abs/2505.09388). No torch."""

from __future__ import annotations

from octavo.models.config import Config
from octavo.models.dense_config import read_dense, switched_windows
from octavo.models.facts import ModelFacts

DEFAULT_HEAD_DIM = 128
"""Of a config without the key; it is not hidden_size / num_attention_heads."""


def read(config: Config) -> ModelFacts:
    """Queries and keys pass an RMS norm per head; one switch for all four attention biases."""
    has_bias = config.boolean("attention_bias", default=False)
    return read_dense(
        config,
        windows=switched_windows(config),
        qkv_bias=has_bias,
        output_bias=has_bias,
        qk_norm=True,
        default_head_dim=DEFAULT_HEAD_DIM,
    )
