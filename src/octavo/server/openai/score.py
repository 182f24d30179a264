"""POST /score and /rerank: how well texts go together, by a cross-encoder or by the cosine of two embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from octavo.core.errors import ContextLengthError, RequestError
from octavo.core.pooling import wrong_task
from octavo.core.request import Request
from octavo.engine.pooled import MAX_TRUNCATED_CHARS, cosine, pair_up
from octavo.server.call import Call
from octavo.server.openai.pooled import Build, Later, PoolingUsage, Work
from octavo.server.parse import Parser
from octavo.server.schema_pooling import CohereRerankBody, RerankBody, ScoreBody

_score = Parser(ScoreBody)
_rerank = Parser(RerankBody)
_cohere = Parser(CohereRerankBody)
Pairs = list[tuple[str, str]]


class Score(msgspec.Struct, kw_only=True):
    """Of one pair."""

    index: int
    object: str = "score"
    score: float


class ScoreList(msgspec.Struct, kw_only=True):
    """The answer of /score."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Score]
    usage: PoolingUsage


class Document(msgspec.Struct):
    """A document that was sent."""

    text: str


class Ranked(msgspec.Struct, kw_only=True):
    """One document."""

    index: int
    """Where it stands in `documents`."""
    document: Document | UnsetType = UNSET
    relevance_score: float


class RerankList(msgspec.Struct, kw_only=True):
    """The answer of /rerank."""

    id: str
    model: str
    usage: PoolingUsage
    results: list[Ranked]


class ApiVersion(msgspec.Struct):
    """Of the shape."""

    version: str = "2"


class BilledUnits(msgspec.Struct):
    """Nobody is billed here; clients read the field."""

    search_units: int = 1


class Meta(msgspec.Struct, kw_only=True):
    """What Cohere's clients read beside the results."""

    api_version: ApiVersion = msgspec.field(default_factory=ApiVersion)
    billed_units: BilledUnits = msgspec.field(default_factory=BilledUnits)


class CohereRerankList(msgspec.Struct, kw_only=True):
    """The answer of /v2/rerank."""

    id: str
    results: list[Ranked]
    meta: Meta


class _Scorer:
    """Requests for the scores of pairs: one for each pair, or one for each different text."""

    def __init__(self, work: Work, pairs: Pairs) -> None:
        self._work = work
        self._pairs = pairs
        self._texts: list[str] = []
        self._requests: list[Request] = []

    @classmethod
    async def of(cls, work: Work, pairs: Pairs, param: str) -> _Scorer:
        """Check and tokenize everything.

        Raises:
            RequestError: the model gives no scores, or a text is too long.
        """
        made = cls(work, pairs)
        if "score" in work.facts.tasks:
            names = [f"{param}[{index}]" for index in range(len(pairs))]
            prompts = await work.texts(pairs, names)
            made._requests = work.requests(prompts, work.params(), "score")
        elif "embed" in work.facts.tasks:
            made._texts = list(dict.fromkeys(text for pair in pairs for text in pair))
            singles = [(text, None) for text in made._texts]
            prompts = await work.texts(singles, [param] * len(singles))
            made._requests = work.requests(prompts, work.params(), "embed")
        else:
            raise wrong_task(work.facts, "score")
        return made

    async def scores(self) -> list[float]:
        """In the order of the pairs."""
        answers = await self._work.answers(self._requests)
        if not self._texts:
            return [float(answer.floats()[0]) for answer in answers]
        vectors = {text: answer.floats() for text, answer in zip(self._texts, answers, strict=True)}
        return [cosine(vectors[one], vectors[other]) for one, other in self._pairs]


async def score(call: Call) -> ASGIApp:
    """A number for each pair."""
    body = await call.body(_score)
    firsts = _either(body.text_1, body.queries, ("text_1", "queries"))
    seconds = _either(body.text_2, body.documents, ("text_2", "documents"))
    pairs = pair_up(firsts, seconds, ("text_1", "text_2"))
    work = Work(call, body, "score")
    scorer = await _Scorer.of(work, pairs, "text_2")

    async def make() -> Build:
        scores = await scorer.scores()
        return lambda: ScoreList(
            id=f"score-{call.id}",
            created=work.created,
            model=work.model,
            data=[Score(index=index, score=value) for index, value in enumerate(scores)],
            usage=work.usage,
        )

    return Later(work, make)


def _either(
    one: str | list[str] | None, other: str | list[str] | None, names: tuple[str, str]
) -> list[str]:
    """The texts under one of two names of a field.

    Raises:
        RequestError: under none of them, or both.
    """
    if (one is None) == (other is None):
        given = "neither" if one is None else "both"
        raise RequestError(
            f"{given} of {names[0]} and {names[1]} is set; expected one.", param=names[0]
        )
    found = other if one is None else one
    return [found] if isinstance(found, str) else list(found or ())


async def rerank(call: Call) -> ASGIApp:
    """Documents by how well they answer a query, best first, as Jina's clients read it."""
    body = await call.body(_rerank)
    work = Work(call, body, "rerank")
    texts = _documents(body.documents)
    scorer = await _Scorer.of(work, [(body.query, text) for text in texts], "documents")

    async def make() -> Build:
        ranked = _ranked(await scorer.scores(), body.top_n)
        if body.return_documents is not False:
            for one in ranked:
                one.document = Document(texts[one.index])
        return lambda: RerankList(
            id=f"rerank-{call.id}", model=work.model, usage=work.usage, results=ranked
        )

    return Later(work, make)


async def cohere_rerank(call: Call) -> ASGIApp:
    """The same as Cohere's clients read it."""
    body = await call.body(_cohere)
    work = Work(call, body, "rerank")
    texts = _documents(body.documents)
    if body.max_tokens_per_doc is not None:
        whole, most = texts, body.max_tokens_per_doc
        texts = await call.state.frontend.aside(
            lambda: _shortened(work, whole, most), sum(map(len, whole))
        )
    scorer = await _Scorer.of(work, [(body.query, text) for text in texts], "documents")

    async def make() -> Build:
        ranked = _ranked(await scorer.scores(), body.top_n)
        return lambda: CohereRerankList(id=f"rerank-{call.id}", results=ranked, meta=Meta())

    return Later(work, make)


def _documents(given: Sequence[Any]) -> list[str]:
    """Their texts.

    Raises:
        RequestError: neither a text nor an object with nothing but one.
    """
    texts: list[str] = []
    for index, one in enumerate(given):
        text = one.get("text") if isinstance(one, dict) and set(one) == {"text"} else one
        if not isinstance(text, str):
            where = f"documents[{index}]"
            raise RequestError(f'{where} is neither a text nor {{"text": a text}}.', param=where)
        texts.append(text)
    return texts


def _shortened(work: Work, texts: Sequence[str], max_tokens: int) -> list[str]:
    """Each text up to the end of its first `max_tokens` tokens.

    Raises:
        ContextLengthError: a text so long that looking for them would take seconds.
    """
    for index, text in enumerate(texts):
        if len(text) > MAX_TRUNCATED_CHARS:
            raise ContextLengthError(
                f"documents[{index}] has {len(text)} characters; expected at most {MAX_TRUNCATED_CHARS}.",
                param=f"documents[{index}]",
            )
    return [work.frontend.tokenizer.first_tokens(text, max_tokens) for text in texts]


def _ranked(scores: Sequence[float], top_n: int | None) -> list[Ranked]:
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [Ranked(index=index, relevance_score=scores[index]) for index in order[: top_n or None]]
