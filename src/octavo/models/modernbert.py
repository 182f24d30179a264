"""ModernBERT (https://arxiv.org/abs/2412.13663). No torch."""

from __future__ import annotations

from msgspec.structs import replace

from octavo.layers.pool_spec import PoolKind, Stage, StageActivation
from octavo.layers.rope_spec import RopeSpec
from octavo.models.bert import CURVES
from octavo.models.config import Config
from octavo.models.dense_config import model_dtype, num_layers
from octavo.models.encoder_facts import EncoderFacts
from octavo.models.facts import ModelFacts
from octavo.models.pooling_config import classifier, embedder, read_labels
from octavo.models.registry import PRE_NORM

THETAS = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}  # fmt: skip
"""Kind of layer -> where older configs have the base of its rotations, and its default."""
CLASSIFIER_CURVES: dict[str, StageActivation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "tanh": "tanh",
}


def _read(config: Config) -> EncoderFacts:
    size, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if size % (2 * heads):
        config.refuse("num_attention_heads", f"a divisor of half of hidden_size ({size})")
    curve = config.string("hidden_activation", "gelu")
    if curve not in CURVES:
        config.refuse("hidden_activation", f"one of {', '.join(CURVES)}")
    attention_bias = config.boolean("attention_bias", default=False)
    return EncoderFacts(
        architecture=config.strings("architectures")[0],
        network=PRE_NORM,
        num_layers=num_layers(config),
        hidden_size=size,
        intermediate_size=config.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=size // heads,
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer("max_position_embeddings", 8192),
        dtype=model_dtype(config),
        rope=_rope(config, "full_attention"),
        local_rope=_rope(config, "sliding_attention"),
        windows=_windows(config),
        rms_eps=config.number("norm_eps", 1e-5),
        norm_bias=config.boolean("norm_bias", default=False),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=config.boolean("mlp_bias", default=False),
        curve=CURVES[curve],
        is_gated=True,
        has_positions=False,
    )


def _windows(config: Config) -> tuple[int | None, ...]:
    """`local_attention` counts both sides; here a window is one of them with the token itself."""
    layers = num_layers(config)
    every = config.integer("global_attn_every_n_layers", 3)
    kinds: tuple[str, ...] = tuple(
        "sliding_attention" if i % every else "full_attention" for i in range(layers)
    )
    if config.has("layer_types"):
        kinds = config.strings("layer_types")
        if len(kinds) != layers or not set(kinds) <= set(THETAS):
            config.refuse("layer_types", f"{layers} names out of {', '.join(THETAS)}")
    window = config.integer("local_attention", 128, least=2) // 2 + 1
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(config: Config, kind: str) -> RopeSpec:
    key, default = THETAS[kind]
    rope = config.section("rope_parameters").section(kind)
    if rope.string("rope_type", "default") != "default":
        rope.refuse("rope_type", "'default'")
    return RopeSpec(theta=rope.number("rope_theta", config.number(key, default)))


def read_embedder(config: Config) -> ModelFacts:
    """The encoder alone."""
    facts = _read(config)
    return replace(
        facts, pooling=embedder(config, "cls"), ignored_weights=("head.", "decoder.", "classifier.")
    )


def read_classifier(config: Config) -> ModelFacts:
    """The first token, or the mean, through a dense layer with a norm, then to logits."""
    facts, labels = _read(config), read_labels(config)
    kinds: dict[str, PoolKind] = {"cls": "cls", "mean": "mean"}
    kind = config.string("classifier_pooling", "cls")
    if kind not in kinds:
        config.refuse("classifier_pooling", "cls or mean")
    curve = config.string("classifier_activation", "gelu")
    if curve not in CLASSIFIER_CURVES:
        config.refuse("classifier_activation", f"one of {', '.join(CLASSIFIER_CURVES)}")
    head = Stage(
        name="head.dense",
        num_inputs=facts.hidden_size,
        num_outputs=facts.hidden_size,
        has_bias=config.boolean("classifier_bias", default=False),
        activation=CLASSIFIER_CURVES[curve],
        norm="head.norm",
        norm_eps=facts.rms_eps,
        norm_bias=facts.norm_bias,
    )
    last = Stage(name="classifier", num_inputs=facts.hidden_size, num_outputs=len(labels))
    return replace(facts, pooling=classifier(config, kinds[kind], (head, last), labels))
