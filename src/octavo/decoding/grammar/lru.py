"""A cache that forgets the least recently used, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BytesLRU(Generic[K, V]):
    """Values with a size each; what they sum to never exceeds `max_bytes`. Not for several threads at once."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value, which is then the most recently used; None when it is not there."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, num_bytes: int) -> None:
        """Keep a value, forgetting others as need be; one that is too large alone is not kept."""
        self.discard(key)
        if num_bytes > self.max_bytes:
            return
        self._entries[key] = (value, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes:
            _, (_, size) = self._entries.popitem(last=False)
            self.num_bytes -= size

    def discard(self, key: K) -> None:
        """Forget a value, if it is there."""
        found = self._entries.pop(key, None)
        if found is not None:
            self.num_bytes -= found[1]

    def __len__(self) -> int:
        return len(self._entries)
