"""RoBERTa (https://arxiv.org/abs/1907.11692) and XLM-RoBERTa (https://arxiv.org/abs/1911.02116). No torch."""

from __future__ import annotations

from msgspec.structs import replace

from octavo.layers.pool_spec import Stage
from octavo.models.bert import read_post_norm
from octavo.models.config import Config
from octavo.models.encoder_facts import EncoderFacts
from octavo.models.facts import ModelFacts
from octavo.models.pooling_config import classifier, embedder, read_labels


def _read(config: Config) -> EncoderFacts:
    """Positions begin after the padding token's, whose rows of the table come from how fairseq counted."""
    return read_post_norm(
        config, "roberta", position_offset=config.integer("pad_token_id", 1, least=0) + 1
    )


def read_embedder(config: Config) -> ModelFacts:
    """The encoder alone."""
    facts = _read(config)
    ignored = (*facts.ignored_weights, "roberta.pooler.", "pooler.", "lm_head.")
    return replace(facts, pooling=embedder(config, "cls"), ignored_weights=ignored)


def read_classifier(config: Config) -> ModelFacts:
    """The first token through a dense layer with tanh, then to logits."""
    facts, labels = _read(config), read_labels(config)
    size = facts.hidden_size
    stages = (
        Stage(name="classifier.dense", num_inputs=size, num_outputs=size, activation="tanh"),
        Stage(name="classifier.out_proj", num_inputs=size, num_outputs=len(labels)),
    )
    return replace(facts, pooling=classifier(config, "cls", stages, labels))
