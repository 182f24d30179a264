"""What a model's pooling facts make of what a caller asks."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.core.errors import RequestError
from octavo.core.params import PoolingParams
from octavo.core.pooling import PoolingFacts, no_generation, served_by, wrong_task

EMBEDDER = PoolingFacts(tasks=("embed", "token_embed"), num_features=64, reads_last_token=True)
NESTED = PoolingFacts(tasks=("embed",), num_features=64, is_matryoshka=True)
SCORER = PoolingFacts(tasks=("classify", "score"), num_features=1, labels=("yes",))


def test_everything_is_decided() -> None:
    asked = EMBEDDER.resolve(PoolingParams(), "embed")
    assert asked == PoolingParams(
        task="embed", use_activation=True, skip_reading_prefix_cache=False
    )
    rows = EMBEDDER.resolve(PoolingParams(task="token_embed", use_activation=False), "embed")
    assert rows.skip_reading_prefix_cache is True and rows.use_activation is False
    assert NESTED.resolve(PoolingParams(), "embed").skip_reading_prefix_cache is True
    skipping = PoolingParams(skip_reading_prefix_cache=True)
    assert EMBEDDER.resolve(skipping, "embed").skip_reading_prefix_cache is True


@pytest.mark.parametrize(
    ("facts", "params", "param"),
    [
        (EMBEDDER, {"task": "score"}, "task"),
        (EMBEDDER, {"dimensions": 8}, "dimensions"),
        (NESTED, {"dimensions": 65}, "dimensions"),
        (SCORER, {"task": "score", "dimensions": 1}, "dimensions"),
    ],
)
def test_refusals(facts: PoolingFacts, params: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        facts.resolve(PoolingParams(**params), "embed")
    assert caught.value.param == param


@pytest.mark.parametrize(
    "params",
    [
        {"task": "encode"},
        {"dimensions": 0},
        {"dimensions": True},
        {"dimensions": 10**30},
        {"use_activation": 1},
        {"skip_reading_prefix_cache": "no"},
    ],
)
def test_bad_params(params: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        PoolingParams(**params)
    assert caught.value.param == next(iter(params))


def test_who_serves_what() -> None:
    assert "/v1/chat/completions" in served_by(None)
    assert served_by(SCORER) == ("/classify", "/pooling", "/score", "/rerank")
    assert "/v1/embeddings" in no_generation(EMBEDDER).fix
    assert "generates text" in wrong_task(None, "embed").message
