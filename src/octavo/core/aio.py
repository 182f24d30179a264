"""What asyncio leaves out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from typing import TypeVar

T = TypeVar("T")


async def closable(source: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """An async generator over any source, so that closing it reaches the source at once."""
    items = aiter(source)
    try:
        async for item in items:
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
