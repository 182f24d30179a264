"""Query parameters of lists: `limit`, `after`, `order`, and their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar
from urllib.parse import parse_qsl

from octavo.core.errors import NotFoundError, RequestError, did_you_mean
from octavo.server.call import Call
from octavo.server.jobs.store import Store
from octavo.server.limits import MAX_NAME_CHARS

MAX_LIMIT = 10_000
_DEFAULT_LIMIT = 20


class HasId(Protocol):
    """An entry of a list."""

    id: str


T = TypeVar("T", bound=HasId)


def store_of(call: Call) -> Store:
    """Where files and jobs are kept.

    Raises:
        RequestError: nowhere.
    """
    if call.state.store is None:
        raise RequestError(
            "this server keeps no files.",
            code="unsupported_endpoint",
            fix="Start it with --state-dir FOLDER.",
        )
    return call.state.store


def path_id(call: Call, name: str) -> str:
    """An id out of the path."""
    return str(call.scope["path_params"][name])


def query(call: Call, known: Sequence[str]) -> dict[str, str]:
    """The query parameters; an unknown one is refused by name.

    Raises:
        RequestError: unknown, given twice, or too long.
    """
    raw = call.scope["query_string"].decode("latin-1")
    found: dict[str, str] = {}
    for name, value in parse_qsl(raw, keep_blank_values=True, max_num_fields=64):
        short = name[:40]
        if name not in known:
            call.refuse(
                RequestError(
                    f"unknown query parameter {short!r}.{did_you_mean(short, known)}",
                    param=short,
                    code="unknown_field",
                )
            )
            continue
        if name in found or len(value) > MAX_NAME_CHARS:
            raise RequestError(f"{name} is given twice or too long.", param=name)
        found[name] = value
    return found


def page(items: list[T], asked: dict[str, str]) -> tuple[list[T], bool]:
    """The part of `items` (newest first) that is asked for, and whether more follows.

    Raises:
        RequestError: a limit or order out of range.
        NotFoundError: no such entry to come after.
    """
    limit = asked.get("limit", str(_DEFAULT_LIMIT))
    if not (
        limit.isascii() and limit.isdigit() and len(limit) < 8 and 1 <= int(limit) <= MAX_LIMIT
    ):
        raise RequestError(f"limit is {limit[:40]!r}; expected 1 to {MAX_LIMIT}.", param="limit")
    order = asked.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError(f"order is {order[:40]!r}; expected asc or desc.", param="order")
    listed = items if order == "desc" else items[::-1]
    after = asked.get("after")
    if after is not None:
        places = [index for index, item in enumerate(listed) if item.id == after]
        if not places:
            raise NotFoundError(
                f"after is {after[:64]!r}, which is not in the list.", param="after"
            )
        listed = listed[places[0] + 1 :]
    return listed[: int(limit)], len(listed) > int(limit)
