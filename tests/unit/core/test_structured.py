"""One constraint, of a bounded size; errors name the field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from octavo.core import structured
from octavo.core.errors import RequestError
from octavo.core.params import SamplingParams
from octavo.core.structured import StructuredOutputs


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, ""),
        ({"regex": "a", "json": "{}"}, ""),
        ({"json_object": True, "choice": ("a",)}, ""),
        ({"json_object": False}, ""),
        ({"json": {"type": "object"}}, ".json"),
        ({"json": ""}, ".json"),
        ({"json": "x" * (structured.MAX_SCHEMA_CHARS + 1)}, ".json"),
        ({"regex": "x" * (structured.MAX_REGEX_CHARS + 1)}, ".regex"),
        ({"grammar": "x" * (structured.MAX_GRAMMAR_CHARS + 1)}, ".grammar"),
        ({"grammar": 3}, ".grammar"),
        ({"structural_tag": "x" * (structured.MAX_SCHEMA_CHARS + 1)}, ".structural_tag"),
        ({"choice": "abc"}, ".choice"),
        ({"choice": ()}, ".choice"),
        ({"choice": ("a", "")}, ".choice"),
        ({"choice": ("a", 1)}, ".choice"),
        ({"choice": ("x" * (structured.MAX_CHOICE_CHARS + 1),)}, ".choice"),
        ({"choice": ("a",) * (structured.MAX_CHOICES + 1)}, ".choice"),
        ({"choice": ("x" * 4000,) * 100}, ".choice"),
        ({"json_object": 1}, ".json_object"),
        ({"regex": "a", "disable_any_whitespace": True}, ".disable_any_whitespace"),
        ({"regex": "a", "whitespace_pattern": " "}, ".whitespace_pattern"),
        ({"choice": ("a",), "disable_additional_properties": True}, ".disable_additional_properties"),
        ({"json": "{}", "disable_any_whitespace": "yes"}, ".disable_any_whitespace"),
        ({"json": "{}", "whitespace_pattern": " " * 257}, ".whitespace_pattern"),
        (
            {"json": "{}", "whitespace_pattern": " ", "disable_any_whitespace": True},
            ".whitespace_pattern",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(given: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        StructuredOutputs(**given)
    assert caught.value.param == f"structured_outputs{param}"
    assert len(caught.value.message) < 300


def test_it_survives_the_wire_and_says_only_what_is_set() -> None:
    params = SamplingParams(structured_outputs=StructuredOutputs(choice=("a", "b")))
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
    assert read == params
    assert read.structured_outputs is not None and read.structured_outputs.constraint == "choice"
    assert msgspec.to_builtins(read.structured_outputs) == {"choice": ("a", "b")}


def test_params_refuse_what_is_no_constraint() -> None:
    with pytest.raises(RequestError, match="structured_outputs is "):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]
