"""Checked reads of a config.json. No torch; no code from the folder runs.

A key that is null counts as absent, as in transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from octavo.core.errors import ModelError
from octavo.core.gguf import Header

MAX_JSON_BYTES = 16 << 20
"""Of config.json and of a weight index; the largest real index is below 1 MB."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: no such file, too large, not JSON, or not an object.
    """
    if not path.is_file():
        raise ModelError(
            f"{path} does not exist.",
            code="E-MODEL-02",
            fix="Give the folder of a model in Hugging Face layout.",
        )
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path} is larger than {MAX_JSON_BYTES} bytes.", code="E-MODEL-02")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}", code="E-MODEL-02") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds {type(data).__name__}, not an object.", code="E-MODEL-02")
    return data


class Config:
    """A JSON object whose reads name the key, what was found and what was expected."""

    def __init__(self, data: dict[str, Any], where: str, parts: tuple[Header, ...] = ()) -> None:
        self.data = data
        self.where = where
        self.parts = parts
        """Of a GGUF file, from which `data` were made."""

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.data.get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether the key is there and null."""
        return key in self.data and self.data[key] is None

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number, `least` or more."""
        value = self._get(key, default, "an integer")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.refuse(key, f"an integer of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._get(key, default, "a number")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < 1e30:
            self.refuse(key, "a finite number above 0")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """A truth value."""
        value = self._get(key, default, "true or false")
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default, "a string")
        if not isinstance(value, str):
            self.refuse(key, "a string")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._get(key, None, "a list of strings")
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.refuse(key, "a list of strings")
        return tuple(value)

    def section(self, key: str) -> Config:
        """A nested object; empty when absent."""
        value = self._get(key, {}, "an object")
        if not isinstance(value, dict):
            self.refuse(key, "an object")
        return Config(value, f"{self.where}: {key}")

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise for the value of `key`."""
        raise ModelError(
            f"{self.where}: {key} is {self.data.get(key)!r}; expected {expected}.", param=key
        )

    def _get(self, key: str, default: Any, expected: str) -> Any:
        value = self.data.get(key)
        if value is not None:
            return value
        if default is None:
            raise ModelError(
                f"{self.where}: key {key!r} is missing; expected {expected}.", param=key
            )
        return default
