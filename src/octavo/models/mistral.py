"""Mistral 7B and its successors (https://arxiv.org/abs/2310.06825). No torch."""

from __future__ import annotations

from octavo.models.config import Config
from octavo.models.dense_config import num_layers, read_dense, trunk_facts
from octavo.models.facts import ModelFacts
from octavo.models.pooling_config import decoder_classifier, decoder_embedder

DEFAULT_WINDOW = 4096
"""Of a config without the key, as in transformers; null means none."""


def read(config: Config) -> ModelFacts:
    """No biases; one sliding window for all layers, or none."""
    window = None
    if not config.is_null("sliding_window"):
        window = config.integer("sliding_window", DEFAULT_WINDOW)
    return read_dense(config, (window,) * num_layers(config))


def read_embedder(config: Config) -> ModelFacts:
    """The trunk alone, with the last token's hidden state for an embedding."""
    return trunk_facts(read(config), decoder_embedder(config))


def read_classifier(config: Config) -> ModelFacts:
    """Logits from the last token's hidden state."""
    return trunk_facts(read(config), decoder_classifier(config))
