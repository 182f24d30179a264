"""The one format of results: what ran where, the ceilings of the run, and parts by name. Written after every part.

    {"format": 1, "card": {...}, "ceilings": {...}, "parts": {NAME: {..., "took_s": 1.5}}}

A part that could not run has "refused" instead of figures. What another card, or a dry run, has written is not gone on with.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FORMAT = 1


class Results:
    """One file; None keeps them in memory."""

    def __init__(self, path: Path | None, card: dict[str, Any], ceilings: dict[str, float]) -> None:
        self._path = path
        self.parts: dict[str, dict[str, Any]] = {}
        old = self._read()
        if old.get("format") == FORMAT and _same(old.get("card", {}), card):
            self.parts = old["parts"]
        self._head = {"format": FORMAT, "card": card, "ceilings": ceilings}
        self._write()

    def is_done(self, name: str) -> bool:
        """Whether a run before this one has figures of it."""
        return name in self.parts and "refused" not in self.parts[name]

    def put(self, name: str, found: dict[str, Any]) -> None:
        """A part is over."""
        self.parts[name] = found
        self._write()

    def _read(self) -> dict[str, Any]:
        if self._path is None or not self._path.is_file():
            return {}
        try:
            read = json.loads(self._path.read_text())
        except ValueError:
            return {}
        return read if isinstance(read, dict) else {}

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".part")
        text = json.dumps(self._head | {"parts": self.parts}, indent=1, default=str)
        beside.write_text(text + "\n")
        os.replace(beside, self._path)  # a run that is cut leaves the file before it, whole


def _same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    keys = ("name", "is_dry", "cuda")
    return all(old.get(key) == new.get(key) for key in keys)
