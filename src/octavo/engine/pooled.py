"""From texts or token ids to pooling requests, and from their one event to an answer. No torch, no HTTP.

`LLM` and the server's handlers both stand on this, as they do on `frontend.py` for text.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from octavo.core.aio import closable
from octavo.core.errors import ContextLengthError, EngineError, RequestError, from_info
from octavo.core.params import PoolingParams, PoolingTask, SamplingParams
from octavo.core.pooling import PoolingFacts, wrong_task
from octavo.core.request import Request
from octavo.core.result import Failed, Finished, Pooled, PooledValues, RequestTiming
from octavo.engine.frontend import Caller, Client, Frontend, check_prompt
from octavo.text.tokenizer import Encoded

T = TypeVar("T")
Floats = npt.NDArray[np.float32]
MAX_TRUNCATED_CHARS = 1 << 20
"""Of a text that may be cut: more is tokens of seconds for a prompt of a page."""
_UNUSED = SamplingParams(max_tokens=None)


class Truncation(NamedTuple):
    """How a prompt that is too long is cut."""

    max_tokens: int | None = None
    """-1: what the model takes; None: not cut but refused."""
    side: Literal["left", "right"] = "right"
    """Where tokens are dropped."""


class Prompt(NamedTuple):
    """One prompt, ready for the engine."""

    token_ids: tuple[int, ...]
    pair_start: int = 0


class Answer(NamedTuple):
    """What came of one request."""

    values: PooledValues
    num_prompt: int
    num_cached: int
    timing: RequestTiming

    def floats(self) -> Floats:
        """The values as an array of their shape."""
        return np.frombuffer(self.values.data, "<f4").reshape(self.values.shape)


class PoolingFrontend:
    """Checks, tokenizes, submits."""

    def __init__(self, frontend: Frontend) -> None:
        self.tokenizer = frontend.tokenizer
        self.client: Client = frontend.client

    def facts(self, wanted: str) -> PoolingFacts:
        """What the model pools.

        Raises:
            RequestError: it generates text.
        """
        pooling = self.client.ready.pooling
        if pooling is None:
            raise wrong_task(None, wanted)
        return pooling

    def text(
        self,
        text: str,
        pair: str | None = None,
        *,
        cut: Truncation = Truncation(),
        add_special_tokens: bool = True,
        param: str = "input",
    ) -> Prompt:
        """A text, or a pair of them, as a prompt.

        Raises:
            ContextLengthError: too long for the model, and not to be cut.
            RequestError: no text, or one that has no tokens.
        """
        limit = self._limit(cut)
        num_chars = len(text) + len(pair or "")
        most_chars = self.client.ready.max_model_len * 64 if limit is None else MAX_TRUNCATED_CHARS
        if num_chars > most_chars:
            raise ContextLengthError(
                f"{param} has {num_chars} characters; expected at most {most_chars}.", param=param
            )
        encoded: Encoded = self.tokenizer.encode_within(
            text, pair, max_tokens=limit, side=cut.side, add_special_tokens=add_special_tokens
        )
        return self._checked(encoded.token_ids, encoded.pair_start, param)

    def ids(
        self, token_ids: Sequence[int], *, cut: Truncation = Truncation(), param: str = "input"
    ) -> Prompt:
        """Token ids as a prompt. Raises as `text`."""
        limit = self._limit(cut)
        if limit is not None and len(token_ids) > limit:
            token_ids = token_ids[:limit] if cut.side == "right" else token_ids[-limit:]
        return self._checked(token_ids, 0, param)

    def _limit(self, cut: Truncation) -> int | None:
        longest = self.client.ready.max_model_len
        if cut.max_tokens is None:
            return None
        if cut.max_tokens == -1:
            return longest
        if not 1 <= cut.max_tokens <= longest:
            raise RequestError(
                f"truncate_prompt_tokens is {cut.max_tokens}; expected -1 or 1 to {longest}.",
                param="truncate_prompt_tokens",
            )
        return cut.max_tokens

    def _checked(self, token_ids: Sequence[int], pair_start: int, param: str) -> Prompt:
        ready = self.client.ready
        if len(token_ids) > ready.max_model_len:
            raise ContextLengthError(
                f"{param} has {len(token_ids)} tokens; this model takes {ready.max_model_len}.",
                param=param,
                fix="Shorten it, or set truncate_prompt_tokens to -1.",
            )
        try:
            ids = check_prompt(token_ids, ready.vocab_size)
        except RequestError as error:
            raise RequestError(f"{param}: {error.message}", param=param) from error
        return Prompt(ids, pair_start)

    def request(
        self,
        prompt: Prompt,
        params: PoolingParams,
        default: PoolingTask,
        *,
        caller: Caller = Caller(),
        request_id: str,
    ) -> Request:
        """One request for a checked prompt.

        Raises:
            RequestError: the model cannot do what `params` asks for.
        """
        return Request(
            id=request_id,
            token_ids=prompt.token_ids,
            params=_UNUSED,
            max_tokens=0,
            seed=0,
            arrived=time.monotonic(),
            priority=caller.priority,
            tenant=caller.tenant,
            weight=caller.weight,
            cache_scope=caller.cache_scope,
            deadline=caller.deadline,
            first_token_by=caller.first_token_by,
            pooling=self.facts(default).resolve(params, default),
            pair_start=prompt.pair_start,
        )

    async def answer(self, request: Request) -> Answer:
        """Submit, and wait for what comes of it. Cancelled when the caller is.

        Raises:
            OctavoError: the engine failed this request.
        """
        pooled: Pooled | None = None
        async with contextlib.aclosing(closable(self.client.generate(request))) as events:
            async for event in events:
                if isinstance(event, Pooled):
                    pooled = event
                elif isinstance(event, Failed):
                    raise from_info(event.error)
                elif isinstance(event, Finished) and pooled is not None:
                    prompt, cached = event.num_prompt, pooled.num_cached
                    return Answer(pooled.values, prompt, cached, event.timing)
        raise EngineError("the request ended without an answer.", code="aborted")


async def all_of(
    requests: Sequence[Request], answer: Callable[[Request], Awaitable[T]], limit: int
) -> list[T]:
    """Answers in the order of the requests, `limit` of which run at once. One that fails ends the others."""
    slots = asyncio.Semaphore(limit)

    async def one(request: Request) -> T:
        async with slots:
            return await answer(request)

    tasks = [asyncio.ensure_future(one(request)) for request in requests]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def pair_up(
    firsts: Sequence[str], seconds: Sequence[str], names: tuple[str, str]
) -> list[tuple[str, str]]:
    """One with each of several, or place by place.

    Raises:
        RequestError: neither one nor as many firsts as seconds, or none at all.
    """
    if not firsts or not seconds:
        empty = names[0] if not firsts else names[1]
        raise RequestError(f"{empty} is empty; expected at least one text.", param=empty)
    if len(firsts) not in (1, len(seconds)):
        raise RequestError(
            f"{names[0]} has {len(firsts)} texts and {names[1]} has {len(seconds)}; expected one, or as many.",
            param=names[0],
        )
    if len(firsts) == 1:
        firsts = list(firsts) * len(seconds)
    return list(zip(firsts, seconds, strict=True))


def cosine(one: Floats, other: Floats) -> float:
    """Cosine of the angle between two vectors; 0 where one of them has no length."""
    size = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(np.dot(one, other)) / size if size else 0.0
