"""POST /pooling and /classify: what the model's pooler makes of each input."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.types import ASGIApp

from octavo.core.params import PoolingTask
from octavo.core.pooling import PER_TOKEN, PoolingFacts, wrong_task
from octavo.server.call import Call
from octavo.server.openai.pooled import Build, Later, PoolingUsage, Work, written
from octavo.server.parse import Parser
from octavo.server.schema_pooling import ClassifyBody, PoolingBody

_pooling = Parser(PoolingBody)
_classify = Parser(ClassifyBody)


class PoolingData(msgspec.Struct, kw_only=True):
    """One input's: a row, or a row per token."""

    object: str = "pooling"
    index: int
    data: list[Any] | str


class PoolingList(msgspec.Struct, kw_only=True):
    """The answer of /pooling."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[PoolingData]
    usage: PoolingUsage


class Classes(msgspec.Struct, kw_only=True):
    """One input's label and the probabilities of all."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassList(msgspec.Struct, kw_only=True):
    """The answer of /classify."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classes]
    usage: PoolingUsage


async def pooling(call: Call) -> ASGIApp:
    """Vectors, or a vector per token."""
    body = await call.body(_pooling)
    work = Work(call, body, "pool prompts")
    task = body.task or _default_task(work.facts)
    params = work.params(task, body.dimensions)
    work.facts.resolve(params, task)  # before anything costly
    requests = work.requests(await work.prompts(body), params, task)

    async def make() -> Build:
        answers = await work.answers(requests)
        return lambda: PoolingList(
            id=f"pool-{call.id}",
            created=work.created,
            model=work.model,
            data=[
                PoolingData(index=index, data=written(one, body.encoding_format))
                for index, one in enumerate(answers)
            ],
            usage=work.usage,
        )

    return Later(work, make)


def _default_task(facts: PoolingFacts) -> PoolingTask:
    return next((task for task in PER_TOKEN if task in facts.tasks), facts.tasks[0])


async def classify(call: Call) -> ASGIApp:
    """The likeliest label of each input."""
    body = await call.body(_classify)
    work = Work(call, body, "classify")
    if "classify" not in work.facts.tasks:
        raise wrong_task(work.facts, "classify")
    requests = work.requests(await work.prompts(body), work.params("classify"), "classify")
    labels = work.facts.labels

    async def make() -> Build:
        answers = await work.answers(requests)

        def build() -> ClassList:
            data: list[Classes] = []
            for index, one in enumerate(answers):
                probs: list[float] = one.floats().tolist()
                label = labels[probs.index(max(probs))]
                data.append(Classes(index=index, label=label, probs=probs, num_classes=len(probs)))
            return ClassList(
                id=f"classify-{call.id}",
                created=work.created,
                model=work.model,
                data=data,
                usage=work.usage,
            )

        return build

    return Later(work, make)
