"""Which linear layers a checkpoint quantizes, by name. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable

from octavo.core.errors import ModelError
from octavo.layers.quant.spec import StoredSpec


class Claim:
    """The names that a checkpoint leaves in plain numbers."""

    def __init__(self, spec: StoredSpec) -> None:
        self._ignored = tuple(map(_matcher, spec.ignored))

    def __call__(self, names: tuple[str, ...]) -> bool:
        """Whether the parts of a layer are quantized.

        Raises:
            ModelError: some are and some are not, though one product makes all of them.
        """
        found = [self.is_quantized(name) for name in names]
        if any(found) and not all(found):
            raise ModelError(
                f"{', '.join(names)} are one product, and the checkpoint quantizes only some of them.",
                code="E-MODEL-04",
                fix="Use a checkpoint that quantizes all of them, or none.",
            )
        return all(found)

    def is_quantized(self, name: str) -> bool:
        """Whether a single matrix is."""
        return not any(matches(name) for matches in self._ignored)


def _matcher(entry: str) -> Callable[[str], bool]:
    if entry.startswith("re:"):
        pattern = re.compile(entry[3:])
        return lambda name: pattern.match(name) is not None
    return lambda name: f".{entry}." in f".{name}."
