"""`response_format` and `structured_outputs` as callers send them, to the constraint that reaches the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from fakes import EOS, VOCAB_SIZE, FakeEngine, InProcess, byte_tokenizer, make_state
from octavo.engine.frontend import Frontend

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PATHS = {"/v1/chat/completions": CHAT, "/v1/completions": {"prompt": "hi", "max_tokens": 2}}


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def server(engine: FakeEngine) -> Iterator[InProcess]:
    state = make_state(engine)
    yield InProcess(state)
    state.frontend.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, '"type": "object"'),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}}, '"integer"'),
        ({"response_format": {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": SCHEMA, "end": "</a>"}], "triggers": ["<a"]}}, '"<a"'),
        ({"structured_outputs": {"json": SCHEMA}}, '"integer"'),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, '"integer"'),
        ({"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}}, '"additionalProperties": false'),
        ({"structured_outputs": {"regex": "[ab]{3}", "json": None}}, "[ab]{3}"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, '"yes" | "no"'),
        ({"structured_outputs": {"grammar": 'start: "x"'}}, 'start: "x"'),
        ({"structured_outputs": {"json_object": True}}, '"type": "object"'),
    ],
)  # fmt: skip
def test_a_demand_reaches_the_engine_compiled(
    server: InProcess, engine: FakeEngine, path: str, given: dict[str, Any], expected: str
) -> None:
    answer = server.post(path, PATHS[path] | given | {"n": 2, "stream": True})
    assert answer.status_code == 200, answer.text
    first, second = engine.submitted[-2:]
    written = first.grammar.replace('":', '": ').replace('\\"', '"').replace('":  ', '": ')
    assert expected in written and first.grammar == second.grammar
    assert engine.vocabulary.vocab_size == VOCAB_SIZE
    assert engine.vocabulary.eos_token_ids == (EOS,)


def test_the_engine_can_be_told_the_vocabulary_before_anybody_demands_a_shape() -> None:
    engine = FakeEngine()
    frontend = Frontend(engine, byte_tokenizer())  # type: ignore[arg-type]  # a fake
    asyncio.run(frontend.prepare_grammars())
    assert engine.vocabulary.vocab_size == VOCAB_SIZE
    assert engine.vocabulary is frontend.grammars.vocabulary
    frontend.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("given", [{"response_format": {"type": "text"}}, {"response_format": None}, {"structured_outputs": None}])  # fmt: skip
def test_nothing_is_demanded(
    server: InProcess, engine: FakeEngine, path: str, given: dict[str, Any]
) -> None:
    assert server.post(path, PATHS[path] | given).status_code == 200
    assert engine.submitted[-1].grammar == ""


@pytest.mark.parametrize(
    ("given", "param", "says"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format", "missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "missing"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format.json_schema", "'text'"),
        ({"response_format": {"type": "json_object", "triggers": ["a"]}}, "response_format.structures", "'json_object'"),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x", "unknown"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"items": {"uniqueItems": True}}}}}, "response_format.json_schema.schema", "schema at '/items/uniqueItems'"),
        ({"response_format": {"type": "structural_tag", "structures": [], "triggers": []}}, "response_format", "0 structures"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "response_format", "both"),
        ({"structured_outputs": {}}, "structured_outputs", "none of them"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "regex, choice"),
        ({"structured_outputs": {"regx": "a"}}, "structured_outputs.regx", "Did you mean 'regex'"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "cannot be used"),
        ({"structured_outputs": {"choice": "yes"}}, "structured_outputs.choice", "array"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json", "expected an object"),
        ({"structured_outputs": {"json": "x" * 300_000}}, "structured_outputs.json", "at most"),
        ({"structured_outputs": {"json": "x" * 3_000_000}}, "structured_outputs", "bytes"),
        ({"guided_json": SCHEMA}, "guided_json", "Send structured_outputs.json instead"),
        ({"guided_regex": "a"}, "guided_regex", "Send structured_outputs.regex instead"),
        ({"guided_choice": ["a"]}, "guided_choice", "Send structured_outputs.choice instead"),
        ({"guided_grammar": "a"}, "guided_grammar", "Send structured_outputs.grammar instead"),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_refused_by_name(
    server: InProcess, engine: FakeEngine, given: dict[str, Any], param: str, says: str
) -> None:
    before = len(engine.submitted)
    for path, body in PATHS.items():
        answer = server.post(path, body | given | {"stream": True})
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == param, error
        assert says in json.dumps(error).replace('\\"', '"'), error
    assert len(engine.submitted) == before


def test_null_is_not_set_and_old_names_may_be_null(server: InProcess) -> None:
    body = CHAT | {"guided_json": None, "guided_choice": None, "response_format": None}
    assert server.post("/v1/chat/completions", body).status_code == 200
