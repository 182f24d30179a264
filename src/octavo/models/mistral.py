"""Mistral 7B and its successors (https://arxiv.org/abs/2310.06825). No torch."""

from __future__ import annotations

from octavo.models.config import Config
from octavo.models.dense_config import num_layers, read_dense
from octavo.models.facts import ModelFacts

DEFAULT_WINDOW = 4096
"""Of a config without the key, as in transformers; null means none."""


def read(config: Config) -> ModelFacts:
    """No biases; one sliding window for all layers, or none."""
    window = None
    if not config.is_null("sliding_window"):
        window = config.integer("sliding_window", DEFAULT_WINDOW)
    return read_dense(config, (window,) * num_layers(config))
