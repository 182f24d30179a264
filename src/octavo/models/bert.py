"""BERT (https://arxiv.org/abs/1810.04805) and the many embedders of its shape. No torch."""

from __future__ import annotations

from msgspec.structs import replace

from octavo.kernels.curves import Curve
from octavo.layers.pool_spec import Stage
from octavo.layers.rope_spec import RopeSpec
from octavo.models.config import Config
from octavo.models.dense_config import model_dtype, num_layers
from octavo.models.encoder_facts import EncoderFacts
from octavo.models.facts import ModelFacts
from octavo.models.pooling_config import classifier, embedder, read_labels
from octavo.models.registry import POST_NORM

CURVES: dict[str, Curve] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def read_post_norm(config: Config, prefix: str, *, position_offset: int = 0) -> EncoderFacts:
    """Facts of the shape, pooling left out; `prefix` stands before the names of its weights.

    Raises:
        ModelError: a key is missing, has a wrong type, or asks for what is not supported.
    """
    size, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if size % heads:
        config.refuse("num_attention_heads", f"a divisor of hidden_size ({size})")
    if config.string("position_embedding_type", "absolute") != "absolute":
        config.refuse("position_embedding_type", "'absolute'")
    for key in ("is_decoder", "add_cross_attention"):
        if config.boolean(key, default=False):
            config.refuse(key, "false")
    curve = config.string("hidden_act", "gelu")
    if curve not in CURVES:
        config.refuse("hidden_act", f"one of {', '.join(CURVES)}")
    layers = num_layers(config)
    positions = config.integer("max_position_embeddings", 512)
    if positions <= position_offset:
        config.refuse("max_position_embeddings", f"more than {position_offset}")
    return EncoderFacts(
        architecture=config.strings("architectures")[0],
        network=POST_NORM,
        num_layers=layers,
        hidden_size=size,
        intermediate_size=config.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=size // heads,
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=positions,
        dtype=model_dtype(config),
        rope=RopeSpec(),
        windows=(None,) * layers,
        rms_eps=config.number("layer_norm_eps", 1e-12),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        curve=CURVES[curve],
        num_types=config.integer("type_vocab_size", 2),
        position_offset=position_offset,
        weight_prefix=f"{prefix}.",
        ignored_weights=(f"{prefix}.embeddings.position_ids", "embeddings.position_ids"),
    )


def read_embedder(config: Config) -> ModelFacts:
    """The encoder; the dense layer that the checkpoint calls its pooler is not for embeddings."""
    facts = read_post_norm(config, "bert")
    ignored = (*facts.ignored_weights, "bert.pooler.", "pooler.", "cls.")
    return replace(facts, pooling=embedder(config, "cls"), ignored_weights=ignored)


def read_classifier(config: Config) -> ModelFacts:
    """The first token through a dense layer with tanh, then to logits."""
    facts, labels = read_post_norm(config, "bert"), read_labels(config)
    size = facts.hidden_size
    stages = (
        Stage(name="bert.pooler.dense", num_inputs=size, num_outputs=size, activation="tanh"),
        Stage(name="classifier", num_inputs=size, num_outputs=len(labels)),
    )
    return replace(facts, pooling=classifier(config, "cls", stages, labels))
