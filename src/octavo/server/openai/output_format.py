"""`response_format` and `structured_outputs` of a body to the one constraint that they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from octavo.core.errors import RequestError
from octavo.core.params import SamplingParams
from octavo.core.structured import StructuredOutputs
from octavo.engine.frontend import Frontend
from octavo.server.schema import GenerateBody, ResponseFormat

_SCHEMA = "response_format.json_schema.schema"
_NAMES: Mapping[str, str] = {
    "structured_outputs.json": _SCHEMA,
    "structured_outputs.structural_tag": "response_format",
}
"""Where a constraint came from, when it came from `response_format`."""


def output_format(body: GenerateBody) -> StructuredOutputs | None:
    """What the body demands of the output's shape; None when nothing.

    Raises:
        RequestError: two demands, or one that is not whole.
    """
    wanted = None
    if body.response_format is not None:
        wanted = _of_response_format(body.response_format)
    if body.structured_outputs is None:
        return wanted
    if wanted is not None:
        raise RequestError(
            "response_format and structured_outputs are both set; expected one of them.",
            param="response_format",
        )
    given = body.structured_outputs
    fields = {name: getattr(given, name) for name in given.__struct_fields__}
    for name in ("json", "structural_tag"):
        fields[name] = _text(fields[name])
    if fields["choice"] is not None:
        fields["choice"] = tuple(fields["choice"])
    return StructuredOutputs(
        **{name: value for name, value in fields.items() if value is not None}
    )  # fmt: skip


async def check_output_format(
    frontend: Frontend, body: GenerateBody, params: SamplingParams
) -> None:
    """Have the constraint compiled, before anything else is done for the call.

    Raises:
        RequestError: it cannot be enforced; `param` is the field of the body.
    """
    wanted = params.structured_outputs
    if wanted is None:
        return
    try:
        await frontend.grammars.compile(wanted)
    except RequestError as error:
        if body.structured_outputs is None:
            for ours, theirs in _NAMES.items():
                error.message = error.message.replace(ours, theirs)
            error.param = _NAMES.get(error.param or "", "response_format")
        raise


def _of_response_format(given: ResponseFormat) -> StructuredOutputs | None:
    if given.type != "json_schema" and given.json_schema is not None:
        raise RequestError(
            f"response_format.json_schema is set and the type is {given.type!r}.",
            param="response_format.json_schema",
        )
    if given.type != "structural_tag" and (given.structures or given.triggers):
        raise RequestError(
            f"response_format.structures is set and the type is {given.type!r}.",
            param="response_format.structures",
        )
    if given.type == "text":
        return None
    if given.type == "json_object":
        return StructuredOutputs(json_object=True)
    if given.type == "structural_tag":
        tag = {
            "type": "structural_tag",
            "structures": given.structures or [],
            "triggers": given.triggers or [],
        }
        return StructuredOutputs(structural_tag=msgspec.json.encode(tag).decode())
    schema = None if given.json_schema is None else _text(given.json_schema.schema)
    if schema is None:
        raise RequestError(
            f"{_SCHEMA} is missing; type 'json_schema' needs it.", param="response_format"
        )
    return StructuredOutputs(json=schema)


def _text(raw: Raw) -> str | None:
    """JSON as its text; a string that holds JSON as that; None for nothing and null."""
    text = bytes(raw).strip()
    if text in (b"", b"null"):
        return None
    value: Any = msgspec.json.decode(text) if text.startswith(b'"') else text.decode()
    return str(value)
