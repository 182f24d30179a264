"""One hostile request, and what may come of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

JSON_TYPE = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """What is sent. Any answer below 500 is right, unless `statuses` says more."""

    name: str
    path: str
    body: bytes = b""
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON_TYPE))
    statuses: frozenset[int] | None = None
    """Those that are right; None: all below 500."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawShot:
    """Bytes on a fresh connection; the server answers, hangs up or waits for more, and lives."""

    name: str
    parts: tuple[bytes, ...]
    """Sent one after the other."""
    half_close: bool = False
    """Close the sending side after the last part."""


REFUSED = frozenset({400, 404, 405, 413, 415, 422, 431})


def shot(name: str, path: str, body: Any, *, refused: bool = True) -> Shot:
    """A JSON body to a route; `refused`: nothing but a refusal is right."""
    return Shot(
        name=name,
        path=path,
        body=json.dumps(body).encode("utf-8", "surrogatepass"),
        statuses=REFUSED if refused else None,
    )
