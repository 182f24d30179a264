"""What a checkpoint's config.json says, checked and frozen. No torch."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
from msgspec.structs import replace

from octavo.core.errors import ConfigError
from octavo.core.gguf import Header
from octavo.core.kvspec import DTYPE_BYTES, KVSpec
from octavo.kernels.gpu_facts import FP8_CAPABILITY
from octavo.layers.pool_spec import PoolSpec
from octavo.layers.quant.spec import StoredSpec, on_device
from octavo.layers.rope_spec import RopeSpec
from octavo.models.checkpoint import read_config, read_quantize_file
from octavo.models.pooling_config import Runner, folder_pooling
from octavo.models.registry import FAMILIES, TRUNK_OF, unknown_architecture
from octavo.models.stored_config import read_stored


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """All that is decided by the checkpoint alone."""

    architecture: str
    network: str
    """Row of `models.registry.NETWORKS` that computes it."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    dtype: str
    """The checkpoint's own."""
    rope: RopeSpec
    windows: tuple[int | None, ...]
    """Sliding window of each layer, its own token included; None where all is seen."""
    rms_eps: float = 1e-6
    is_tied: bool = False
    """The head uses the embedding's table."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    weight_prefix: str = "model."
    """Before the names of the trunk's weights; checkpoints of a bare trunk leave it out."""
    ignored_weights: tuple[str, ...] = ()
    """Beginnings of the names of weights that are not used here."""
    pooling: PoolSpec | None = None
    """Set: the model pools prompts and generates nothing."""
    stored: StoredSpec | None = None
    """Set: the checkpoint is quantized already."""
    parts: tuple[Header, ...] = ()
    """Of a GGUF file: where its tensors lie, as it was read for these facts."""

    def on_device(self, capability: tuple[int, int] | None) -> ModelFacts:
        """The same for a GPU of this compute capability (None: not a GPU's, or not known), which may have no products of e4m3."""
        has_fp8 = capability is None or capability >= FP8_CAPABILITY
        return replace(self, stored=on_device(self.stored, has_fp8=has_fp8))

    @property
    def sees_whole_prompts(self) -> bool:
        """Whether a prompt must go through in one step: nothing is kept of it, and each token sees those behind it."""
        return False

    @property
    def max_context(self) -> int:
        """Longest sequence the checkpoint declares; yarn counts its factor, as operators add it by hand."""
        if self.rope.kind != "yarn":
            return self.max_position_embeddings
        stretched = math.floor(self.rope.original_max_position * self.rope.factor)
        return max(self.max_position_embeddings, stretched)

    @property
    def num_parameters(self) -> int:
        """Weights held in memory; a tied head counts once. Exact for the dense network."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        size, inner = self.hidden_size, self.intermediate_size
        attention = (queries + 2 * keys) * (size + self.qkv_bias)
        attention += size * (queries + self.output_bias) + 2 * self.head_dim * self.qk_norm
        mlp = 3 * size * inner + (2 * inner + size) * self.mlp_bias
        tables = (1 if self.is_tied or self.pooling else 2) * self.vocab_size * size
        return self.num_layers * (attention + mlp + 2 * size) + tables + size + self._num_pooler

    @property
    def _num_pooler(self) -> int:
        return 0 if self.pooling is None else self.pooling.num_parameters

    @property
    def num_linear_parameters(self) -> int:
        """Those of the layers' matrices; the rest are the tables, norms and biases."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return (
            self.num_layers
            * self.hidden_size
            * (2 * queries + 2 * keys + 3 * self.intermediate_size)
        )

    def weight_bytes(self, dtype: str, *, linear_bits: float = 0, head_bits: float = 0) -> int:
        """Bytes of all weights in `dtype`, but for matrices, and head (with a tied embedding), of other widths; 0: none."""
        bits = 8 * DTYPE_BYTES[dtype]
        head = 0 if self.pooling is not None else self.vocab_size * self.hidden_size
        rest = self.num_parameters - self.num_linear_parameters - head
        total = (
            self.num_linear_parameters * (linear_bits or bits)
            + head * (head_bits or bits)
            + rest * bits
        )
        return math.ceil(total / 8)

    def activation_bytes(self, num_tokens: int, dtype: str, *, num_logits: int = 1) -> int:
        """Estimated peak of one step's temporaries beside weights and cache.

        Per token: residual, normed and its float32 copy; then the wider of queries, keys and values (twice: before and
        after rotation, once in float32) and the MLP's inner values. Per logits row: model dtype and float32.
        """
        width = DTYPE_BYTES[dtype]
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        inner = max(qkv * (2 * width + 4), 3 * self.intermediate_size * width)
        per_token = 3 * self.hidden_size * width + 2 * self.hidden_size * 4 + inner
        return num_tokens * per_token + num_logits * self.vocab_size * (width + 4)

    def kv_specs(self, dtype: str) -> tuple[KVSpec, ...]:
        """What each layer keeps, in layer order."""
        return tuple(
            KVSpec(
                kind="full" if window is None else "window",
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                dtype=dtype,
                window=window,
            )
            for window in self.windows
        )


def read_facts(folder: Path, runner: Runner = "auto") -> ModelFacts:
    """Read and check `folder/config.json`, and what the folder says about pooling; or a GGUF file.

    Raises:
        ModelError: a missing or wrong key, an unknown architecture, or something not supported.
        ConfigError: `runner` asks for what the model is not.
    """
    config = read_config(folder)
    stored = read_stored(config, read_quantize_file(folder))
    names = config.strings("architectures")
    if not names:
        config.refuse("architectures", "a list with one name")
    try:
        read = FAMILIES.load(names[0])
    except ConfigError as error:
        raise unknown_architecture(names[0]) from error
    facts: ModelFacts = replace(read(config), stored=stored, parts=config.parts)
    spec = folder_pooling(folder, facts.pooling, runner, facts.hidden_size)
    if spec is None or facts.pooling is not None:
        return replace(facts, pooling=spec)
    unused = (*facts.ignored_weights, "lm_head.")
    return replace(facts, pooling=spec, network=TRUNK_OF[facts.network], ignored_weights=unused)
