"""POST /v1/embeddings."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.types import ASGIApp

from octavo.core.errors import RequestError
from octavo.core.pooling import wrong_task
from octavo.server.call import Call
from octavo.server.openai.pooled import Build, Later, PoolingUsage, Work, written
from octavo.server.parse import Parser
from octavo.server.schema_pooling import EmbeddingBody

_parser = Parser(EmbeddingBody)


class Embedding(msgspec.Struct, kw_only=True):
    """One input's."""

    object: str = "embedding"
    index: int
    embedding: list[Any] | str


class EmbeddingList(msgspec.Struct, kw_only=True):
    """The answer."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Embedding]
    usage: PoolingUsage


async def embeddings(call: Call) -> ASGIApp:
    """A vector for each input."""
    body = await call.body(_parser)
    work = Work(call, _one_name(body), "embed")
    if "embed" not in work.facts.tasks:
        raise wrong_task(work.facts, "embed")
    params = work.params("embed", body.dimensions)
    work.facts.resolve(params, "embed")  # before anything costly
    requests = work.requests(await work.prompts(body), params, "embed")

    async def make() -> Build:
        answers = await work.answers(requests)
        return lambda: EmbeddingList(
            id=f"embd-{call.id}",
            created=work.created,
            model=work.model,
            data=[
                Embedding(index=index, embedding=written(one, body.encoding_format))
                for index, one in enumerate(answers)
            ],
            usage=work.usage,
        )

    return Later(work, make)


def _one_name(body: EmbeddingBody) -> EmbeddingBody:
    """`normalize` as `use_activation`."""
    if body.normalize is None:
        return body
    if body.use_activation not in (None, body.normalize):
        raise RequestError("normalize and use_activation differ.", param="normalize")
    return msgspec.structs.replace(body, use_activation=body.normalize)
