"""Grammar compilers by name."""

from __future__ import annotations

from collections.abc import Callable

from octavo.core.registry import Registry
from octavo.decoding.grammar.base import Grammar

GRAMMARS: Registry[Callable[[str], Grammar]] = Registry("grammar", {})
"""Each row makes a `Grammar` from its source text."""
