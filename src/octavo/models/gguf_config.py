"""What a GGUF file's metadata says about the network, under the keys that a config.json has. No torch.

From there on a GGUF file is read by the same family as a folder. What the metadata has and nothing here can honour is
refused. Names of keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, NoReturn

from octavo.core.errors import ModelError, did_you_mean
from octavo.core.gguf import Header, Tensor
from octavo.models.config import Config
from octavo.models.registry import GGUF_FAMILIES, GgufFamily

FLOAT_KINDS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
EMBEDDING, HEAD, FREQUENCIES = "token_embd.weight", "output.weight", "rope_freqs.weight"
STRETCHED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 8192}
"""What every release with stretched frequencies was trained with: https://arxiv.org/abs/2407.21783 and its config.json.
The file keeps what follows from it, one divisor per pair of features."""
TOLERANCE = 1e-4


def family_of(header: Header) -> GgufFamily:
    """The family that `general.architecture` names.

    Raises:
        ModelError: there is none of that name.
    """
    name = Config(dict(header.metadata), header.path).string("general.architecture")
    if name not in GGUF_FAMILIES:
        known = ", ".join(GGUF_FAMILIES)
        raise ModelError(
            f"{header.path}: general.architecture is {name!r:.80}; of GGUF files {known} are read."
            f"{did_you_mean(name, GGUF_FAMILIES)}",
            code="E-MODEL-03",
            fix="Use the model's safetensors folder, if `octavo serve` knows its architecture.",
            param="general.architecture",
        )
    return GGUF_FAMILIES[name]


def head_counts(header: Header) -> tuple[int, int]:
    """(heads of queries, heads of keys and values)."""
    reads = Reads(header)
    heads = reads.same("attention.head_count")
    return heads, reads.same("attention.head_count_kv", heads)


def config_of(parts: tuple[Header, ...]) -> dict[str, Any]:
    """The config.json that the file would have had.

    Raises:
        ModelError: a key is missing or wrong, or says what is not supported.
    """
    first = parts[0]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    family, reads = family_of(first), Reads(first)
    heads, kv_heads = head_counts(first)
    hidden = reads.integer("embedding_length")
    head_dim = reads.integer("attention.key_length", hidden // heads)
    for key, expected in (
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
        ("expert_count", 0),
    ):
        if reads.integer(key, expected, least=0) != expected:
            reads.refuse(key, f"{expected} (others are not supported)")
    window = reads.integer("attention.sliding_window", 0, least=0) if family.windowed else 0
    config: dict[str, Any] = {
        "architectures": [family.windowed if window else family.architecture],
        "hidden_size": hidden,
        "intermediate_size": reads.same("feed_forward_length"),
        "num_hidden_layers": reads.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": _vocab_size(first, tensors, hidden),
        "max_position_embeddings": reads.integer("context_length"),
        # Kept in float32 there: 1e-06 is read as 9.999999974752427e-07.
        "rms_norm_eps": float(f"{reads.number('attention.layer_norm_rms_epsilon'):.6g}"),
        "tie_word_embeddings": HEAD not in tensors,
        "torch_dtype": stored_dtype(tensors),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
    }
    if window:
        config["sliding_window"] = window
    theta = reads.number("rope.freq_base", 10000.0)
    config["rope_parameters"] = {"rope_theta": theta} | _scaling(parts, reads, head_dim, theta)
    return config


class Reads:
    """Checked reads of the keys that begin with the architecture's name."""

    def __init__(self, header: Header) -> None:
        self._config = Config(dict(header.metadata), header.path)
        self._prefix = f"{header.metadata.get('general.architecture')}."

    def has(self, key: str) -> bool:
        """Whether the file has the key."""
        return self._config.has(self._prefix + key)

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number, `least` or more."""
        return self._config.integer(self._prefix + key, default, least=least)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        return self._config.number(self._prefix + key, default)

    def string(self, key: str, default: str | None = None) -> str:
        """A string."""
        return self._config.string(self._prefix + key, default)

    def same(self, key: str, default: int | None = None) -> int:
        """A whole number above 0 that may be given once, or per layer, if all layers have the same."""
        value = self._config.data.get(self._prefix + key)
        if not isinstance(value, tuple):
            return self.integer(key, default)
        if len(set(value)) != 1 or not isinstance(value[0], int) or value[0] < 1:
            self.refuse(key, "the same number above 0 for every layer")
        return value[0]

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise for the value of `key`."""
        self._config.refuse(self._prefix + key, expected)


def stored_dtype(tensors: dict[str, Tensor]) -> str:
    """The one float type that all matrices have. Else bfloat16: its rounding is finer than a quantized value's step."""
    kinds = {tensor.kind for tensor in tensors.values() if len(tensor.shape) > 1}
    return FLOAT_KINDS.get(kinds.pop(), "bfloat16") if len(kinds) == 1 else "bfloat16"


def _vocab_size(header: Header, tensors: dict[str, Tensor], hidden: int) -> int:
    """The rows of the embedding; that its width is the model's shows that metadata and tensors belong together."""
    table = tensors.get(EMBEDDING)
    if table is None or len(table.shape) != 2 or table.shape[1] != hidden:
        found = "missing" if table is None else f"of shape {list(table.shape)}"
        raise ModelError(
            f"{header.path}: {EMBEDDING} is {found}; expected a table with rows of {hidden}.",
            code="E-MODEL-06",
            fix="Give the whole model; files with a vocabulary alone, or an adapter, cannot be served.",
        )
    return table.shape[0]


def _scaling(
    parts: tuple[Header, ...], reads: Reads, head_dim: int, theta: float
) -> dict[str, Any]:
    """The rotary embedding's scaling, in the words of a config.json."""
    for part in parts:
        if FREQUENCIES in part.tensors:
            return _stretched(part, part.tensors[FREQUENCIES], head_dim, theta)
    kind = reads.string("rope.scaling.type", "linear" if reads.has("rope.scale_linear") else "none")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        reads.refuse("rope.scaling.type", "none, linear or yarn (others are not supported)")
    factor = reads.number("rope.scaling.factor", reads.number("rope.scale_linear", 1.0))
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    found: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if reads.has("rope.scaling.original_context_length"):
        original = reads.integer("rope.scaling.original_context_length")
        found["original_max_position_embeddings"] = original
    for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if reads.has(f"rope.scaling.{key}"):
            found[name] = reads.number(f"rope.scaling.{key}")
    if reads.has("rope.scaling.attn_factor"):
        # There it multiplies what follows from the factor; in a config.json it takes its place.
        own = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        found["attention_factor"] = reads.number("rope.scaling.attn_factor") * own
    return found


def _stretched(part: Header, tensor: Tensor, head_dim: int, theta: float) -> dict[str, Any]:
    """The scaling that has these divisors, which are checked one by one.

    Raises:
        ModelError: none that is known has.
    """
    count = head_dim // 2
    divisors: tuple[float, ...] = ()
    if tensor.shape == (count,) and tensor.kind == "F32":
        with Path(part.path).open("rb") as file:
            file.seek(tensor.offset)
            divisors = struct.unpack(f"<{count}f", file.read(tensor.num_bytes))
    factor = max(divisors, default=0.0)
    expected = _divisors(factor, head_dim, theta) if 1.0 <= factor < 1e6 else []
    if len(expected) != len(divisors) or not all(
        abs(one - other) <= TOLERANCE * other for one, other in zip(divisors, expected, strict=True)
    ):
        raise ModelError(
            f"{part.path}: {FREQUENCIES} does not follow from one factor with {STRETCHED}.",
            code="E-MODEL-04",
            fix="Use the model's safetensors folder, whose config.json says how frequencies are scaled.",
        )
    return {
        "rope_type": "llama3",
        "factor": round(factor, 4),
        "low_freq_factor": STRETCHED["low_freq_factor"],
        "high_freq_factor": STRETCHED["high_freq_factor"],
        "original_max_position_embeddings": STRETCHED["original_max_position"],
    }


def _divisors(factor: float, head_dim: int, theta: float) -> list[float]:
    """By what each frequency is divided, as in Llama 3.1: by nothing, by the factor, or between the two."""
    low, high = STRETCHED["low_freq_factor"], STRETCHED["high_freq_factor"]
    found = []
    for pair in range(head_dim // 2):
        turns = STRETCHED["original_max_position"] / (2 * math.pi * theta ** (2 * pair / head_dim))
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1.0 / ((1.0 - share) / factor + share))
    return found
