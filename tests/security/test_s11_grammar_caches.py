"""S11, grammar caches and recursion: any number of schemas takes bounded memory, and what recurses without end is 400."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from grammar_corpus import Instant, vocabulary
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.llguidance import Backend
from security.conftest import Live

NUM_SCHEMAS = 100_000


def growth(act: Callable[[int, int], None], half: int) -> int:
    """Bytes that the second `half` of many calls leaves behind, when the first has filled what there is to fill."""
    act(0, half)
    gc.collect()
    tracemalloc.start()
    try:
        act(half, 2 * half)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_the_cache_of_the_front_end_has_a_bound() -> None:
    compiler = Instant(vocabulary)

    async def many(first: int, last: int) -> None:
        for number in range(first, last):
            await compiler.compile(
                StructuredOutputs(json=json.dumps({"const": f"schema {number}"}))
            )

    asyncio.run(many(0, NUM_SCHEMAS))
    cache = compiler._cache
    assert cache.num_bytes <= cache.max_bytes
    assert 1000 < len(cache) < NUM_SCHEMAS, "it forgets, and not everything"
    assert not compiler._under_way
    num_bytes = sum(len(key) + len(outcome.source) for key, (outcome, _) in cache._entries.items())
    assert num_bytes <= cache.max_bytes


def test_the_cache_of_the_engine_has_a_bound() -> None:
    """Matchers live outside Python's memory; what is counted for each is what the cache is bounded by."""
    backend = Backend(vocabulary())
    cache = backend._cache
    most = cache.max_bytes
    cache.max_bytes = 1 << 20
    for number in range(600):
        backend.build(backend.compile(StructuredOutputs(regex=f"a{number}")))
        assert cache.num_bytes <= cache.max_bytes
    assert 0 < len(cache) < 600 and most < 1 << 30


def deep(opening: str, closing: str, levels: int) -> str:
    return opening * levels + "{}" + closing * levels


RECURSIVE: dict[str, Any] = {
    "itself": {"$ref": "#"},
    "each other": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "all of itself": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "any of itself": {"anyOf": [{"$ref": "#"}]},
    "10,000 items": deep('{"items":', "}", 10_000),
    "10,000 alternatives": deep('{"anyOf":[', "]}", 10_000),
    "10,000 properties": deep('{"properties":{"a":', "}}", 10_000),
    "10,000 constants": '{"const":' + "[" * 10_000 + "]" * 10_000 + "}",
    "a chain of 10,000": {
        "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(10_000)} | {"d10000": {"type": "null"}},
        "$ref": "#/$defs/d0",
    },
    "1,000 nested": deep('{"items":', "}", 1_000),
}  # fmt: skip


@pytest.mark.parametrize("name", RECURSIVE)
def test_endless_and_bottomless_schemas_are_refused(live: Live, name: str) -> None:
    schema = RECURSIVE[name]
    text = schema if isinstance(schema, str) else json.dumps(schema)
    wrapped = f'{{"prompt": "a", "max_tokens": 2, "structured_outputs": {{"json": {text}}}}}'
    strict = (
        '{"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "response_format": '
        f'{{"type": "json_schema", "json_schema": {{"name": "x", "strict": true, "schema": {text}}}}}}}'
    )
    quoted = json.dumps({"prompt": "a", "max_tokens": 2, "structured_outputs": {"json": text}})
    headers = {"content-type": "application/json"}
    with live.client() as client:
        for path, raw in (
            ("/v1/completions", wrapped),
            ("/v1/completions", quoted),
            ("/v1/chat/completions", strict),
        ):
            answer = client.post(path, content=raw, headers=headers)
            assert answer.status_code == 400, (path, answer.text[:300])
        assert client.get("/readyz").status_code == 200
