"""Literal, lazy registries: rows of `"name": "module:attribute"`, imported when first asked for.

Third parties add rows through entry points of the group `octavo.<kind>`. A name stands in its own file, its registry
and its tests, and nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from octavo.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Named rows of one kind of plug-in."""

    def __init__(self, kind: str, rows: Mapping[str, str]) -> None:
        self.kind = kind
        self._rows = dict(rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def load(self, name: str) -> T:
        """The object behind `name`.

        Raises:
            ConfigError: no row and no entry point has that name.
        """
        target = self._rows.get(name) or self._entry_point(name)
        if target is None:
            known = ", ".join(sorted(self._rows))
            raise ConfigError(
                f"unknown {self.kind} {name!r}; known: {known}.{did_you_mean(name, self._rows)}",
                code="E-REG-01",
            )
        module, _, attribute = target.partition(":")
        loaded: Any = getattr(importlib.import_module(module), attribute)
        return loaded  # type: ignore[no-any-return]  # the row names an object of the registry's kind

    def _entry_point(self, name: str) -> str | None:
        group = f"octavo.{self.kind.replace(' ', '_')}"
        for point in importlib.metadata.entry_points(group=group, name=name):
            return point.value
        return None
