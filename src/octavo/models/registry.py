"""Which models exist: `architectures[0]` of config.json -> the function that reads it, as literal rows. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from octavo.core.errors import ModelError, did_you_mean
from octavo.core.registry import Registry

if TYPE_CHECKING:
    from octavo.layers.build import Build
    from octavo.models.base import Model
    from octavo.models.config import Config

# Any stands for ModelFacts, whose module imports this one.
FAMILIES: Registry[Callable[[Config], Any]] = Registry(
    "model",
    {
        "LlamaForCausalLM": "octavo.models.llama:read",
        "MistralForCausalLM": "octavo.models.mistral:read",
        "Qwen2ForCausalLM": "octavo.models.qwen2:read",
        "Qwen3ForCausalLM": "octavo.models.qwen3:read",
    },
)

NETWORKS: Registry[Callable[[Any, Build], Model]] = Registry(
    "network", {"dense": "octavo.models.dense:DenseModel"}
)


def unknown_architecture(name: str) -> ModelError:
    """The error for an architecture without a row."""
    known = ", ".join(sorted(FAMILIES))
    return ModelError(
        f"architecture {name!r} is not known; known: {known}.{did_you_mean(name, FAMILIES)}",
        code="E-MODEL-03",
        param="architectures",
    )
