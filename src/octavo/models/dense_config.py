"""Config keys that the dense families share. No torch."""

from __future__ import annotations

from typing import get_args

from msgspec.structs import replace

from octavo.core.errors import ModelError
from octavo.core.kvspec import DTYPE_BYTES
from octavo.layers.pool_spec import PoolSpec
from octavo.layers.rope_spec import RopeKind, RopeSpec
from octavo.models.config import Config
from octavo.models.facts import ModelFacts
from octavo.models.registry import TRUNK_OF

MAX_LAYERS = 1024
KINDS: tuple[RopeKind, ...] = get_args(RopeKind)
ROPE_KEYS = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "low_freq_factor",
        "high_freq_factor",
        "partial_rotary_factor",
        "finetuned",
    }
)
"""`finetuned` says that the weights were trained with the scaling; it changes no arithmetic."""


def read_dense(
    config: Config, windows: tuple[int | None, ...], *, default_head_dim: int | None = None
) -> ModelFacts:
    """Facts of a dense decoder without biases and query/key norms; a family replaces what it has otherwise.

    Raises:
        ModelError: a key is missing, has a wrong type, contradicts another or asks for what is not supported.
    """
    if config.string("hidden_act", "silu") != "silu":
        config.refuse("hidden_act", "'silu'")
    hidden_size = config.integer("hidden_size")
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        config.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})")
    return ModelFacts(
        architecture=config.strings("architectures")[0],
        network="dense",
        num_layers=num_layers(config),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(config, hidden_size, num_heads, default_head_dim),
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        dtype=model_dtype(config),
        rope=read_rope(config),
        windows=windows,
        rms_eps=config.number("rms_norm_eps", 1e-6),
        is_tied=config.boolean("tie_word_embeddings", default=False),
    )


def num_layers(config: Config) -> int:
    """`num_hidden_layers`, bounded so that a bad file cannot ask for endless work."""
    count = config.integer("num_hidden_layers")
    if count > MAX_LAYERS:
        config.refuse("num_hidden_layers", f"at most {MAX_LAYERS}")
    return count


def switched_windows(config: Config) -> tuple[int | None, ...]:
    """Windows of families where `use_sliding_window` switches them on for some layers.

    `layer_types` names the layers; without it they are those from `max_window_layers` on (default 28, window 4096, as
    in transformers).
    """
    layers = num_layers(config)
    is_on = config.boolean("use_sliding_window", default=False)
    window = config.integer("sliding_window", 4096) if is_on else None
    if config.has("layer_types"):
        kinds = config.strings("layer_types")
        known = {"full_attention", *(("sliding_attention",) if is_on else ())}
        if len(kinds) != layers or not set(kinds) <= known:
            config.refuse("layer_types", f"{layers} names out of {sorted(known)}")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = config.integer("max_window_layers", 28, least=0)
    return tuple(window if i >= first else None for i in range(layers))


def read_rope(config: Config) -> RopeSpec:
    """The rotary embedding, from `rope_parameters` or from `rope_scaling` and `rope_theta`.

    Raises:
        ModelError: a kind or a key that is not supported; nothing is ignored, since it would change the text.
    """
    key = "rope_scaling" if config.has("rope_scaling") else "rope_parameters"
    rope = config.section(key)
    named = rope.string("rope_type", rope.string("type", "default"))
    kind = next((one for one in KINDS if one == named), None)
    if kind is None:
        raise ModelError(
            f"{rope.where}: rope type {named!r} is not supported; known: {', '.join(KINDS)}.",
            param=key,
        )
    for name in rope.data:
        if name not in ROPE_KEYS:
            raise ModelError(
                f"{rope.where}: {name!r} is not known; known: {', '.join(sorted(ROPE_KEYS))}.",
                param=key,
            )
    for holder in (rope, config):
        if holder.number("partial_rotary_factor", 1.0) != 1.0:
            holder.refuse("partial_rotary_factor", "1.0 (others are not supported)")
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    return _scaled(rope, config, kind, theta)


def _scaled(rope: Config, config: Config, kind: RopeKind, theta: float) -> RopeSpec:
    longest = config.integer("max_position_embeddings")
    original = rope.integer(
        "original_max_position_embeddings",
        config.integer("original_max_position_embeddings", longest),
    )
    match kind:
        case "default":
            return RopeSpec(theta=theta)
        case "linear" | "dynamic":
            return RopeSpec(kind=kind, theta=theta, factor=rope.number("factor"))
        case "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            if high <= low:
                rope.refuse("high_freq_factor", f"more than low_freq_factor ({low})")
            return RopeSpec(
                kind=kind,
                theta=theta,
                factor=rope.number("factor"),
                original_max_position=original,
                low_freq_factor=low,
                high_freq_factor=high,
            )
        case "yarn":
            has_factor = rope.has("attention_factor")
            return RopeSpec(
                kind=kind,
                theta=theta,
                factor=rope.number("factor", longest / original),
                original_max_position=original,
                attention_factor=rope.number("attention_factor") if has_factor else None,
                beta_fast=rope.number("beta_fast", 32.0),
                beta_slow=rope.number("beta_slow", 1.0),
                mscale=rope.number("mscale") if rope.has("mscale") else 0.0,
                mscale_all_dim=rope.number("mscale_all_dim") if rope.has("mscale_all_dim") else 0.0,
                truncate=rope.boolean("truncate", default=True),
            )


def _head_dim(config: Config, hidden_size: int, num_heads: int, default: int | None) -> int:
    if config.has("head_dim") or (default is not None and not config.is_null("head_dim")):
        head_dim = config.integer("head_dim", default)
    elif hidden_size % num_heads:
        config.refuse("num_attention_heads", f"a divisor of hidden_size ({hidden_size})")
    else:
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        config.refuse("head_dim", "an even number, so that the rotary embedding pairs features")
    return head_dim


def model_dtype(config: Config) -> str:
    """The dtype that the checkpoint says it has."""
    key = "dtype" if config.has("dtype") else "torch_dtype"
    name = config.string(key, "float32").removeprefix("torch.")
    if name not in DTYPE_BYTES:
        config.refuse(key, f"one of {', '.join(DTYPE_BYTES)}")
    return name


def trunk_facts(facts: ModelFacts, pooling: PoolSpec) -> ModelFacts:
    """The facts of a checkpoint of the trunk, with a pooler in place of the head."""
    return replace(
        facts,
        network=TRUNK_OF["dense"],
        pooling=pooling,
        is_tied=False,
        ignored_weights=("lm_head.",),
    )
