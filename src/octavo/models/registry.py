"""Which models exist: `architectures[0]` of config.json -> the function that reads it, as literal rows. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from octavo.core.errors import ModelError, did_you_mean
from octavo.core.registry import Registry

if TYPE_CHECKING:
    from octavo.layers.build import Build
    from octavo.models.base import Trunk
    from octavo.models.config import Config

# Any stands for ModelFacts, whose module imports this one.
FAMILIES: Registry[Callable[[Config], Any]] = Registry(
    "model",
    {
        "BertForSequenceClassification": "octavo.models.bert:read_classifier",
        "BertModel": "octavo.models.bert:read_embedder",
        "LlamaForCausalLM": "octavo.models.llama:read",
        "LlamaForSequenceClassification": "octavo.models.llama:read_classifier",
        "LlamaModel": "octavo.models.llama:read_embedder",
        "MistralForCausalLM": "octavo.models.mistral:read",
        "MistralForSequenceClassification": "octavo.models.mistral:read_classifier",
        "MistralModel": "octavo.models.mistral:read_embedder",
        "ModernBertForSequenceClassification": "octavo.models.modernbert:read_classifier",
        "ModernBertModel": "octavo.models.modernbert:read_embedder",
        "Qwen2ForCausalLM": "octavo.models.qwen2:read",
        "Qwen2ForSequenceClassification": "octavo.models.qwen2:read_classifier",
        "Qwen2Model": "octavo.models.qwen2:read_embedder",
        "Qwen3ForCausalLM": "octavo.models.qwen3:read",
        "Qwen3ForSequenceClassification": "octavo.models.qwen3:read_classifier",
        "Qwen3Model": "octavo.models.qwen3:read_embedder",
        "RobertaForSequenceClassification": "octavo.models.roberta:read_classifier",
        "RobertaModel": "octavo.models.roberta:read_embedder",
        "XLMRobertaForSequenceClassification": "octavo.models.roberta:read_classifier",
        "XLMRobertaModel": "octavo.models.roberta:read_embedder",
    },
)

DENSE_TRUNK, POST_NORM, PRE_NORM = "dense_trunk", "post_norm_encoder", "pre_norm_encoder"

NETWORKS: Registry[Callable[[Any, Build], Trunk]] = Registry(
    "network",
    {
        "dense": "octavo.models.dense:DenseModel",
        DENSE_TRUNK: "octavo.models.dense:DenseTrunk",
        POST_NORM: "octavo.models.post_norm:PostNormEncoder",
        PRE_NORM: "octavo.models.pre_norm:PreNormEncoder",
    },
)

TRUNK_OF = {"dense": DENSE_TRUNK}
"""Network of a generating model -> the same without its head."""


class GgufFamily(NamedTuple):
    """What `general.architecture` of a GGUF file stands for."""

    architecture: str
    """Row of `FAMILIES`."""
    windowed: str = ""
    """The row instead, where the file has a sliding window; "" where the key says nothing."""
    is_interleaved: bool = False
    """Whether queries and keys were reordered so that the features of a rotated pair lie side by side."""


GGUF_FAMILIES: dict[str, GgufFamily] = {
    "llama": GgufFamily("LlamaForCausalLM", windowed="MistralForCausalLM", is_interleaved=True),
    "qwen2": GgufFamily("Qwen2ForCausalLM"),
    "qwen3": GgufFamily("Qwen3ForCausalLM"),
}


def unknown_architecture(name: str) -> ModelError:
    """The error for an architecture without a row."""
    known = ", ".join(sorted(FAMILIES))
    return ModelError(
        f"architecture {name!r} is not known; known: {known}.{did_you_mean(name, FAMILIES)}",
        code="E-MODEL-03",
        param="architectures",
    )
