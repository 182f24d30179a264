"""Llama 2 and 3 (https://arxiv.org/abs/2407.21783) and the many checkpoints that share the architecture. No torch."""

from __future__ import annotations

from msgspec.structs import replace

from octavo.models.config import Config
from octavo.models.dense_config import num_layers, read_dense, trunk_facts
from octavo.models.facts import ModelFacts
from octavo.models.pooling_config import decoder_classifier, decoder_embedder


def read(config: Config) -> ModelFacts:
    """Full attention everywhere; one switch for all four attention biases and one for the MLP's."""
    has_bias = config.boolean("attention_bias", default=False)
    return replace(
        read_dense(config, (None,) * num_layers(config)),
        qkv_bias=has_bias,
        output_bias=has_bias,
        mlp_bias=config.boolean("mlp_bias", default=False),
    )


def read_embedder(config: Config) -> ModelFacts:
    """The trunk alone, with the last token's hidden state for an embedding."""
    return trunk_facts(read(config), decoder_embedder(config))


def read_classifier(config: Config) -> ModelFacts:
    """Logits from the last token's hidden state."""
    return trunk_facts(read(config), decoder_classifier(config))
