"""GET /openapi.json: the API as a document, made from the very types that bodies are read into and answers written from."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from types import UnionType
from typing import Any

import msgspec
from starlette.responses import Response

from octavo.server.app import ROUTES
from octavo.server.call import Call, RouteRow
from octavo.server.console.events import MAX_FRAMES
from octavo.server.contract import CONTRACTS, Contract
from octavo.server.errors import ErrorBody
from octavo.server.openai.pages import MAX_LIMIT
from octavo.server.state import octavo_version
from octavo.server.unsupported import NEUTRAL

_REF = "#/components/schemas/{name}"
_WITH_BODY = (400, 408, 413, 415)
_GENERATING = (404, 429, 499, 503)
_REASONS = {
    200: "The answer.",
    400: "The call cannot be honoured as sent; `param` names the field.",
    401: "No key, or one that is not known here.",
    403: "The key may not do this.",
    404: "No such model, file or job.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "Too much is waiting, or kept, or the key has used up a limit; come back after Retry-After.",
    499: "Ended by its id before it had anything to say.",
    503: "Loading, shutting down, or out of order.",
    504: "Its deadline was over before it had anything to say.",
}
_NAME = {"type": "string", "maxLength": 256}
_QUERY: Mapping[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
    "order": {"type": "string", "enum": ["asc", "desc"]},
    "after": _NAME,
    "purpose": _NAME,
    "frames": {"type": "integer", "minimum": 1, "maximum": MAX_FRAMES},
    "deep": {"type": "string", "enum": ["0", "1"]},
    "since": _NAME,
    "until": _NAME,
    "by": _NAME,
    "what_if": {"type": "string", "enum": ["true", "false"]},
}
_FORM = {
    "type": "object",
    "additionalProperties": False,
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
}


async def openapi_json(call: Call) -> Response:
    """The document."""
    return Response(_encoded(), media_type="application/json")


@functools.cache
def _encoded() -> bytes:
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """OpenAPI 3.1 of all routes."""
    kinds: dict[Any, None] = {}
    for one in CONTRACTS.values():
        found = (one.body, one.answer, one.event, one.error)
        kinds |= {kind: None for kind in found if kind is not None}
    refs, components = msgspec.json.schema_components(list(kinds), ref_template=_REF)
    by_kind = dict(zip(kinds, refs, strict=True))
    for one in CONTRACTS.values():
        if one.body is not None:
            _close(
                components[by_kind[one.body]["$ref"].rpartition("/")[2]], NEUTRAL[one.body.__name__]
            )
    paths: dict[str, dict[str, Any]] = {}
    for row in ROUTES:
        path = re.sub(r":\w+}", "}", row.path)
        contract = CONTRACTS[row.method, row.path]
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, path, contract, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": octavo_version()},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _close(schema: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """No other fields, and those that are known and not honoured with the values that ask for nothing."""
    schema["additionalProperties"] = False
    for name, values in neutral.items():
        schema["properties"][name] = {
            "enum": [None, *values],
            "description": "Not honoured: taken only with a value that asks for nothing.",
        }


def _operation(
    row: RouteRow, path: str, contract: Contract, by_kind: Mapping[Any, dict[str, Any]]
) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", f"{row.method.lower()}{path}").strip("_")
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": contract.summary,
        "parameters": _parameters(path, contract),
        "responses": _responses(row, contract, by_kind),
    }
    if row.public:
        operation["security"] = []
    if contract.body is not None:
        operation["requestBody"] = _required("application/json", by_kind[contract.body])
    elif contract.form:
        operation["requestBody"] = _required("multipart/form-data", _FORM)
    return operation


def _parameters(path: str, contract: Contract) -> list[dict[str, Any]]:
    found = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    return found + [
        {"name": name, "in": "query", "required": False, "schema": _QUERY[name]}
        for name in contract.query
    ]


def _responses(
    row: RouteRow, contract: Contract, by_kind: Mapping[Any, dict[str, Any]]
) -> dict[str, Any]:
    statuses = {*contract.failures}
    if contract.body is not None or contract.form:
        statuses |= {*_WITH_BODY, *_GENERATING}
    if contract.body is not None and "deadline_ms" in contract.body.__struct_fields__:
        statuses.add(504)
    if not row.public:
        statuses.add(401)
    if row.role != "user":
        statuses.add(403)
    if row.method == "POST" and not row.public:
        statuses.add(429)
    if contract.answer is None:
        content: dict[str, Any] = {contract.media: {}}
    else:
        content = {"application/json": {"schema": by_kind[contract.answer]}}
    if contract.event is not None:
        content["text/event-stream"] = {"itemSchema": _event(contract.event, by_kind)}
    answers: dict[str, Any] = {"200": {"description": _REASONS[200], "content": content}}
    for status in sorted(statuses):
        # A health answer that says no has the shape of one that says yes.
        is_own = status == 503 and row.public and contract.answer is not None
        kind = contract.answer if is_own and contract.answer is not None else contract.error
        answers[str(status)] = {
            "description": _REASONS[status],
            "content": {"application/json": {"schema": by_kind[kind]}},
        }
    return answers


def _event(kind: Any, by_kind: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    """One event of a stream, in the words of OpenAPI 3.2, which readers of 3.1 pass over.

    Events of one type have no name; an error may stand among them, and a word that is no JSON ends them.
    """
    is_named = isinstance(kind, UnionType)
    payload = by_kind[kind] if is_named else {"anyOf": [by_kind[kind], by_kind[ErrorBody]]}
    data: dict[str, Any] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": payload,
    }
    if not is_named:
        data = {"anyOf": [data, {"const": "[DONE]"}]}
    return {
        "type": "object",
        "required": ["event", "data"] if is_named else ["data"],
        "properties": {"event": {"type": "string"}, "data": data},
    }


def _required(media: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {media: {"schema": schema}}}
