"""Qwen2 and Qwen2.5, dense (https://arxiv.org/abs/2407.10671). No torch."""

from __future__ import annotations

from msgspec.structs import replace

from octavo.models.config import Config
from octavo.models.dense_config import read_dense, switched_windows, trunk_facts
from octavo.models.facts import ModelFacts
from octavo.models.pooling_config import decoder_classifier, decoder_embedder


def read(config: Config) -> ModelFacts:
    """Biases on queries, keys and values always, nowhere else; windows by switch."""
    return replace(read_dense(config, switched_windows(config)), qkv_bias=True)


def read_embedder(config: Config) -> ModelFacts:
    """The trunk alone, with the last token's hidden state for an embedding."""
    return trunk_facts(read(config), decoder_embedder(config))


def read_classifier(config: Config) -> ModelFacts:
    """Logits from the last token's hidden state."""
    return trunk_facts(read(config), decoder_classifier(config))
