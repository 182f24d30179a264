"""Grammar backends by name."""

from __future__ import annotations

from collections.abc import Callable

from octavo.core.registry import Registry
from octavo.decoding.grammar.base import GrammarBackend, Vocabulary

GRAMMARS: Registry[Callable[[Vocabulary], GrammarBackend]] = Registry(
    "grammar", {"llguidance": "octavo.decoding.grammar.llguidance:Backend"}
)
"""Each row makes a backend for a vocabulary; that loads the library and takes up to seconds."""

DEFAULT = "llguidance"
