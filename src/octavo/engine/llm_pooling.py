"""What `LLM.encode`, `.embed`, `.classify` and `.score` stand on: many pooling requests at once, answers in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from octavo.core.errors import RequestError
from octavo.core.params import PoolingParams, PoolingTask
from octavo.core.request import Request
from octavo.engine.pooled import (
    Answer,
    PoolingFrontend,
    Prompt,
    Truncation,
    all_of,
    cosine,
)
from octavo.engine.progress import Progress


class PoolingOutput(msgspec.Struct, kw_only=True):
    """What the pooler made: one row, or a row per token."""

    data: list[float] | list[list[float]]


class PoolingRequestOutput(msgspec.Struct, kw_only=True):
    """One prompt's answer."""

    prompt_token_ids: list[int]
    outputs: PoolingOutput
    num_cached_tokens: int = 0


class EmbeddingOutput(msgspec.Struct, kw_only=True):
    """An embedding."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        """Its features."""
        return len(self.embedding)


class EmbeddingRequestOutput(msgspec.Struct, kw_only=True):
    """One prompt's embedding."""

    prompt_token_ids: list[int]
    outputs: EmbeddingOutput
    num_cached_tokens: int = 0


class ClassificationOutput(msgspec.Struct, kw_only=True):
    """Probabilities by label, in the model's order; logits with `use_activation` false."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        """How many labels."""
        return len(self.probs)


class ClassificationRequestOutput(msgspec.Struct, kw_only=True):
    """One prompt's classes."""

    prompt_token_ids: list[int]
    outputs: ClassificationOutput
    num_cached_tokens: int = 0


class ScoringOutput(msgspec.Struct, kw_only=True):
    """A score."""

    score: float


class ScoringRequestOutput(msgspec.Struct, kw_only=True):
    """One pair's score. Of an embedder the ids are those of both texts, one after the other."""

    prompt_token_ids: list[int]
    outputs: ScoringOutput
    num_cached_tokens: int = 0


def embedding_output(one: PoolingRequestOutput) -> EmbeddingRequestOutput:
    """As an embedding."""
    return EmbeddingRequestOutput(
        prompt_token_ids=one.prompt_token_ids,
        outputs=EmbeddingOutput(embedding=_row(one)),
        num_cached_tokens=one.num_cached_tokens,
    )


def classification_output(one: PoolingRequestOutput) -> ClassificationRequestOutput:
    """As classes."""
    return ClassificationRequestOutput(
        prompt_token_ids=one.prompt_token_ids,
        outputs=ClassificationOutput(probs=_row(one)),
        num_cached_tokens=one.num_cached_tokens,
    )


def _row(one: PoolingRequestOutput) -> list[float]:
    return [value for value in one.outputs.data if isinstance(value, float)]


class PoolingCalls:
    """Pooling requests of one call of an `LLM`. At most `limit` wait in the engine at once.

    Raises:
        RequestError: the model generates text.
    """

    def __init__(
        self, frontend: PoolingFrontend, wanted: str, numbers: Iterator[int], limit: int
    ) -> None:
        self.facts = frontend.facts(wanted)
        self._frontend = frontend
        self._numbers = numbers
        self._limit = limit

    def prompt(self, given: str | Sequence[int], truncate: int | None) -> Prompt:
        """A prompt, checked."""
        cut = Truncation(truncate)
        if isinstance(given, str):
            return self._frontend.text(given, cut=cut, param="prompts")
        return self._frontend.ids(given, cut=cut, param="prompts")

    async def run(
        self,
        prompts: Sequence[Prompt],
        params: PoolingParams | None,
        task: PoolingTask,
        progress: Callable[[int], Progress],
    ) -> list[PoolingRequestOutput]:
        """All of them, in their order."""
        answers = await self._answers(prompts, params, task, progress)
        return [
            PoolingRequestOutput(
                prompt_token_ids=list(prompt.token_ids),
                outputs=PoolingOutput(data=answer.floats().tolist()),
                num_cached_tokens=answer.num_cached,
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    async def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        params: PoolingParams | None,
        truncate: int | None,
        progress: Callable[[int], Progress],
    ) -> list[ScoringRequestOutput]:
        """Of each pair, in their order."""
        cut = Truncation(truncate)
        if "embed" in self.facts.tasks:
            texts = list(dict.fromkeys(text for pair in pairs for text in pair))
            prompts = {text: self._frontend.text(text, cut=cut, param="data_1") for text in texts}
            found = await self._answers(list(prompts.values()), params, "embed", progress)
            by_text = dict(zip(texts, found, strict=True))
            return [
                _score(
                    [*prompts[one].token_ids, *prompts[other].token_ids],
                    cosine(by_text[one].floats(), by_text[other].floats()),
                )
                for one, other in pairs
            ]
        joined = [self._frontend.text(one, other, cut=cut, param="data_1") for one, other in pairs]
        answers = await self._answers(joined, params, "score", progress)
        return [
            _score(list(prompt.token_ids), float(answer.floats()[0]))
            for prompt, answer in zip(joined, answers, strict=True)
        ]

    async def _answers(
        self,
        prompts: Sequence[Prompt],
        params: PoolingParams | None,
        task: PoolingTask,
        progress: Callable[[int], Progress],
    ) -> list[Answer]:
        """Answers to prompts, all of which are checked before any runs."""
        asked = params or PoolingParams()
        if asked.task not in (None, task):
            raise RequestError(
                f"task is {asked.task!r}, and this method is for {task!r}.",
                param="task",
                fix="Use LLM.encode.",
            )
        requests = [
            self._frontend.request(one, asked, task, request_id=f"llm-{next(self._numbers)}")
            for one in prompts
        ]
        shown = progress(len(requests))

        async def one(request: Request) -> Answer:
            answer = await self._frontend.answer(request)
            shown.finished(answer.num_prompt)
            shown.tokens(0, answer.timing.last_token or 0.0)
            return answer

        with shown:
            return await all_of(requests, one, self._limit)


def _score(token_ids: list[int], value: float) -> ScoringRequestOutput:
    return ScoringRequestOutput(prompt_token_ids=token_ids, outputs=ScoringOutput(score=value))
