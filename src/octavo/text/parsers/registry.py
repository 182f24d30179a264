"""Which output parsers there are, by name: one row per file of this folder."""

from __future__ import annotations

from octavo.core.registry import Registry
from octavo.text.parsers.base import OutputParser

REASONING: Registry[type[OutputParser]] = Registry("reasoning parser", {})
TOOL_CALLS: Registry[type[OutputParser]] = Registry("tool call parser", {})
