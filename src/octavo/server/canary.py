"""A request whose answer is known, made through the real scheduler again and again: does the engine still say the same?

The answer taken right after the start is the known one. What comes later is compared token by token and, up to where
the tokens part, by how likely each was found: numbers that drift are seen before a token changes. It goes to the engine
as any request does, in no queue of the server's and in no count of its callers' requests; it waits where all wait, and
shows how old the last answer is. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import NamedTuple, Protocol

import numpy as np

from octavo.core.aio import closable
from octavo.core.errors import OctavoError, from_info
from octavo.core.log import get_logger
from octavo.core.params import PoolingParams, SamplingParams
from octavo.core.request import Request
from octavo.core.result import Event, Failed, Pooled, TokenLogprobs, TokenOut
from octavo.engine.ipc import Ready

logger = get_logger(__name__)

ID_PREFIX = "canary-"
TENANT = "octavo:canary"
_PRIORITY = 1 << 30
_NUM_PROMPT = 12
"""Fewer tokens than a block has: nothing of it is found in the prefix cache, all is computed each time."""
_NUM_OUTPUT = 8
_TOLERANCE = 1e-3
"""In float32, whose bits should not depend on what else is in a step: nats, or parts of the largest feature."""
_ROUGH_TOLERANCE = 0.5
"""In 16-bit types, whose sums depend on the shape of a step."""
_FIRST_S = 1.0
"""After the server is ready: the first caller should not wait for it (0.1 to 0.2 s of a 0.6B model on two cores)."""
_AGAIN_S = 1.0
"""After an answer that was wrong, and until there is a first one."""


class Client(Protocol):
    """What a canary needs of an engine client."""

    @property
    def ready(self) -> Ready:
        """What was started. Raises OctavoError until it is."""
        ...

    def generate(self, request: Request) -> AsyncIterator[Event]:
        """Submit, then yield events up to and including one Finished or Failed."""
        ...


class Answer(NamedTuple):
    """What the engine said."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    features: tuple[float, ...] = ()
    """Of a pooling model, which says no tokens."""


class Match(NamedTuple):
    """An answer beside the known one."""

    num_equal: int
    """Tokens up to the first that differs; of a pooling model 1 or 0."""
    drift: float
    """Largest difference of what can be compared, as `_TOLERANCE` counts it."""
    is_good: bool


class Canary:
    """Asks, compares, remembers. Owner: the server's event loop."""

    def __init__(self, client: Client, interval_s: float) -> None:
        self.interval_s = interval_s
        self.known: Answer | None = None
        self.match: Match | None = None
        """Of the last answer."""
        self.latency_s = 0.0
        self.num_failures = 0
        self.trouble = ""
        """Why the last answer was no good; empty when it was."""
        self._client = client
        self._answered_at: float | None = None

    @property
    def age_s(self) -> float | None:
        """Seconds since the last answer, good or not; None before the first."""
        return None if self._answered_at is None else time.monotonic() - self._answered_at

    @property
    def num_expected(self) -> int:
        """Tokens of the known answer."""
        return 0 if self.known is None else len(self.known.token_ids) or 1

    async def run(self) -> None:
        """Ask for ever, one at a time; first when a caller that waited for the server to be ready has asked."""
        await asyncio.sleep(min(_FIRST_S, self.interval_s))
        while True:
            await self.ask()
            is_fine = self.known is not None and not self.trouble
            await asyncio.sleep(self.interval_s if is_fine else min(_AGAIN_S, self.interval_s))

    async def ask(self) -> None:
        """One round. What the engine cannot take now is no answer, and changes nothing but the age."""
        begun = time.monotonic()
        try:
            ready = self._client.ready
        except OctavoError:
            return  # loading or gone: others say so
        try:
            answer = await self._answer(ready)
        except OctavoError as error:
            if error.status != 500:
                return  # full, or gone meanwhile
            self._judge(None, f"it failed: {error.message}")
        else:
            if self.known is None:
                self.known = answer
            self.match = compare(self.known, answer, is_exact=ready.dtype == "float32")
            self._judge(self.match, "" if self.match.is_good else _difference(self))
        self.latency_s = time.monotonic() - begun
        self._answered_at = time.monotonic()

    def _judge(self, match: Match | None, trouble: str) -> None:
        if trouble:
            self.num_failures += 1
            if match is None:
                self.match = Match(0, 0.0, is_good=False)
            logger.error(
                "the canary's answer is no good: %s; /readyz is false until one is", trouble
            )
        elif self.trouble:
            logger.warning("the canary's answer is good again")
        self.trouble = trouble

    async def _answer(self, ready: Ready) -> Answer:
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        features: tuple[float, ...] = ()
        events = self._client.generate(_request(ready))
        async with aclosing(closable(events)) as source:
            async for event in source:
                if isinstance(event, TokenOut):
                    token_ids += event.token_ids
                    logprobs += event.logprobs or ()
                elif isinstance(event, Pooled):
                    features = tuple(np.frombuffer(event.values.data, "<f4").tolist())
                elif isinstance(event, Failed):
                    raise from_info(event.error)
        return Answer(tuple(token_ids), tuple(logprobs), features)


def compare(known: Answer, answer: Answer, *, is_exact: bool) -> Match:
    """How alike two answers are. Where tokens part, both must have been about as likely; `is_exact`: to float32."""
    tolerance = _TOLERANCE if is_exact else _ROUGH_TOLERANCE
    if known.features or answer.features:
        drift = _feature_drift(known.features, answer.features)
        if not is_exact:
            tolerance /= 10  # an embedding is no sum of nats: a twentieth of its largest feature
        return Match(int(drift <= tolerance), drift, is_good=drift <= tolerance)
    drift, num_equal = 0.0, 0
    for a, b in zip(known.logprobs, answer.logprobs, strict=False):
        if a.token_ids[0] != b.token_ids[0]:
            chances = dict(zip(a.token_ids, a.logprobs, strict=True))
            drift = max(drift, a.logprobs[0] - chances.get(b.token_ids[0], -1e9))
            break
        drift = max(drift, _distance(a.logprobs[0], b.logprobs[0]))
        num_equal += 1
    is_whole = len(known.token_ids) == len(answer.token_ids) == len(answer.logprobs)
    return Match(num_equal, drift, is_good=is_whole and drift <= tolerance)


def _feature_drift(known: tuple[float, ...], answer: tuple[float, ...]) -> float:
    if len(known) != len(answer):
        return math.inf
    largest = max(map(abs, known)) or 1.0
    return max(map(_distance, known, answer)) / largest


def _distance(a: float, b: float) -> float:
    """Infinite where one of them is no number."""
    distance = abs(a - b)
    return math.inf if math.isnan(distance) else distance


def _difference(canary: Canary) -> str:
    assert canary.match is not None, "it was compared"
    equal, drift = canary.match.num_equal, canary.match.drift
    return f"{equal} of {canary.num_expected} tokens as right after the start, drift {drift:.3g}"


def _request(ready: Ready) -> Request:
    """The same each time. Its ids are spread over the vocabulary, so that it needs no tokenizer."""
    size, pooling = ready.vocab_size, ready.pooling
    room = max(1, min(_NUM_PROMPT, ready.max_model_len - _NUM_OUTPUT))
    ids = tuple((7 + 37 * i) % size for i in range(room))
    num_output = max(1, min(_NUM_OUTPUT, ready.max_model_len - room))
    if pooling is not None:
        return Request(
            id=f"{ID_PREFIX}{secrets.token_hex(8)}",
            token_ids=ids,
            params=SamplingParams(max_tokens=None),
            max_tokens=0,
            seed=0,
            arrived=time.monotonic(),
            priority=_PRIORITY,
            tenant=TENANT,
            cache_scope=TENANT,
            pooling=pooling.resolve(PoolingParams(), pooling.tasks[0]),
        )
    return Request(
        id=f"{ID_PREFIX}{secrets.token_hex(8)}",
        token_ids=ids,
        params=SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True, logprobs=2),
        max_tokens=num_output,
        seed=0,
        arrived=time.monotonic(),
        priority=_PRIORITY,
        tenant=TENANT,
        cache_scope=TENANT,
    )
