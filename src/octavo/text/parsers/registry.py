"""Which output formats there are, under the names that operators know: one row per name, a file per format."""

from __future__ import annotations

from octavo.core.registry import Registry
from octavo.text.parsers.base import ReasoningFormat, ToolFormat

_HERE = "octavo.text.parsers"

REASONING: Registry[ReasoningFormat] = Registry(
    "reasoning parser",
    {
        "qwen3": f"{_HERE}.think:FORMAT",
        "deepseek_r1": f"{_HERE}.think:FORMAT",
        "granite": f"{_HERE}.granite:REASONING",
        "mistral": f"{_HERE}.mistral:REASONING",
        "openai_gptoss": f"{_HERE}.harmony:REASONING",
    },
)
TOOL_CALLS: Registry[ToolFormat] = Registry(
    "tool call parser",
    {
        "hermes": f"{_HERE}.hermes:FORMAT",
        "qwen3_coder": f"{_HERE}.qwen3_coder:FORMAT",
        "qwen3_xml": f"{_HERE}.qwen3_coder:FORMAT",
        "llama3_json": f"{_HERE}.llama3:FORMAT",
        "llama4_json": f"{_HERE}.llama3:FORMAT",
        "llama4_pythonic": f"{_HERE}.pythonic:FORMAT",
        "mistral": f"{_HERE}.mistral:FORMAT",
        "granite": f"{_HERE}.granite:FORMAT",
        "deepseek_v3": f"{_HERE}.deepseek:FORMAT",
        "deepseek_v31": f"{_HERE}.deepseek:BARE",
        "openai": f"{_HERE}.harmony:TOOLS",
        "pythonic": f"{_HERE}.pythonic:FORMAT",
        "json": f"{_HERE}.plain_json:FORMAT",
    },
)
