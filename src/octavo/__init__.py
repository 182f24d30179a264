"""An LLM inference engine and server whose KV cache is kept in pages of sixteen tokens.

`from octavo import LLM, SamplingParams` is all that a script needs; importing this package loads neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.core.params import PoolingParams, SamplingParams
    from octavo.core.structured import StructuredOutputs
    from octavo.engine.llm import LLM

__all__ = ["LLM", "PoolingParams", "SamplingParams", "StructuredOutputs"]

_HOMES = {
    "LLM": "octavo.engine.llm",
    "PoolingParams": "octavo.core.params",
    "SamplingParams": "octavo.core.params",
    "StructuredOutputs": "octavo.core.structured",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
