"""Speculative methods by name."""

from __future__ import annotations

from collections.abc import Callable

from octavo.core.registry import Registry
from octavo.decoding.spec.base import Proposer

PROPOSERS: Registry[Callable[[], Proposer]] = Registry("speculative method", {})
"""Each row makes a `Proposer`."""
