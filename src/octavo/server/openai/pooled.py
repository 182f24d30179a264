"""What the pooling endpoints share: inputs to prompts, prompts to answers, and each request booked exactly once."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.core.errors import OctavoError, OverloadError, RequestError
from octavo.core.params import PoolingParams, PoolingTask
from octavo.core.pooling import PoolingFacts
from octavo.core.request import Request
from octavo.core.result import RequestTiming
from octavo.engine.pooled import Answer, PoolingFrontend, Prompt, Truncation, all_of
from octavo.meter.metrics import Outcome
from octavo.server.call import Call
from octavo.server.costs.budgets import BudgetError
from octavo.server.limits import MAX_INPUTS
from octavo.server.openai.sampling import caller_of
from octavo.server.schema_pooling import InputBody, PoolingBase
from octavo.server.stream import unless_gone

_INLINE_CHARS = 8192
"""Texts up to this length together are tokenized in place; more goes to a thread."""
_INLINE_BYTES = 1 << 18
"""Of values that are written in place (some milliseconds); more goes to a thread."""
_FILL = 4
"""Requests of one call in the engine at once, as a multiple of what a step takes."""


class PoolingUsage(msgspec.Struct, kw_only=True):
    """Tokens of a call."""

    prompt_tokens: int
    total_tokens: int


class Work:
    """One call to a pooling endpoint.

    Raises:
        RequestError: the model generates text, or a field that cannot be honoured.
        EngineDeadError: the server is loading or draining.
    """

    def __init__(self, call: Call, body: PoolingBase, wanted: str) -> None:
        self.call = call
        self.model = call.state.check_model(body.model)
        self.caller = caller_of(call, body)
        call.state.check_accepting()
        call.stay.glance(self.caller)
        self.frontend = PoolingFrontend(call.state.frontend)
        self.facts: PoolingFacts = self.frontend.facts(wanted)
        if body.truncation_side is not None and body.truncate_prompt_tokens is None:
            raise RequestError(
                "truncation_side is set and truncate_prompt_tokens is not.",
                param="truncation_side",
                fix="Set truncate_prompt_tokens.",
            )
        self.cut = Truncation(body.truncate_prompt_tokens, body.truncation_side or "right")
        self.created = int(time.time())
        self._activates = body.use_activation
        self.usage = PoolingUsage(prompt_tokens=0, total_tokens=0)
        self.num_bytes = 0
        """Of all answers."""

    async def prompts(self, body: InputBody) -> list[Prompt]:
        """The prompts of `input`.

        Raises:
            RequestError: neither text, nor token ids, nor a list of one of them; or too long a prompt.
        """
        given = body.input
        adds = body.add_special_tokens is not False
        if isinstance(given, str):
            return await self.texts([(given, None)], ["input"], add_special_tokens=adds)
        kinds = set(map(type, given))
        if kinds == {int}:
            return [self.frontend.ids(given, cut=self.cut)]
        if not given or len(given) > MAX_INPUTS:
            raise RequestError(
                f"input is a list of {len(given)}; expected 1 to {MAX_INPUTS}.", param="input"
            )
        names = [f"input[{index}]" for index in range(len(given))]
        if kinds == {str}:
            return await self.texts([(one, None) for one in given], names, add_special_tokens=adds)
        if kinds == {list}:
            return [self._ids(one, name) for one, name in zip(given, names, strict=True)]
        raise RequestError(
            "input is a list of neither texts alone, token ids alone, nor lists of token ids alone.",
            param="input",
        )

    def _ids(self, given: list[Any], param: str) -> Prompt:
        if set(map(type, given)) != {int}:
            raise RequestError(f"{param} is empty or has more than token ids in it.", param=param)
        return self.frontend.ids(given, cut=self.cut, param=param)

    async def texts(
        self,
        texts: Sequence[tuple[str, str | None]],
        names: Sequence[str],
        *,
        add_special_tokens: bool = True,
    ) -> list[Prompt]:
        """Texts, or pairs of them, as prompts; off the event loop when they are long together."""

        def all_of_them() -> list[Prompt]:
            return [
                self.frontend.text(
                    text, pair, cut=self.cut, add_special_tokens=add_special_tokens, param=name
                )
                for (text, pair), name in zip(texts, names, strict=True)
            ]

        num_chars = sum(len(text) + len(pair or "") for text, pair in texts)
        if num_chars <= _INLINE_CHARS:
            return all_of_them()
        return await self.call.state.frontend.aside(all_of_them, num_chars)

    def params(
        self, task: PoolingTask | None = None, dimensions: int | None = None
    ) -> PoolingParams:
        """What the engine is asked for."""
        return PoolingParams(task=task, dimensions=dimensions, use_activation=self._activates)

    def requests(
        self, prompts: Sequence[Prompt], params: PoolingParams, task: PoolingTask
    ) -> list[Request]:
        """Requests of the call: all are checked before any runs. Raises OverloadError."""
        name, many = self.call.id, len(prompts) > 1
        requests = [
            self.frontend.request(
                prompt,
                params,
                task,
                caller=self.caller,
                request_id=f"{task}-{name}-{index}" if many else f"{task}-{name}",
            )
            for index, prompt in enumerate(prompts)
        ]
        self.call.stay.enter(self.caller, requests)
        return requests

    async def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """What comes of them, in their order."""
        self.call.running.requests = requests
        marks = self.call.running.marks
        marks.prepared = marks.prepared or time.monotonic()
        state, account, tab = self.call.state, self.call.allowance, self.call.tab

        def abort() -> None:
            for request in requests:
                state.engine.cancel(request.id)

        tab.begin(abort)
        try:
            account.begin(sum(request.num_prompt for request in requests))
        except OctavoError:
            tab.end()
            raise
        state.begin_call()
        try:
            limit = _FILL * state.engine.ready.max_num_seqs
            found = await all_of(requests, self._booked, limit)
        except BudgetError:
            raise
        except OverloadError as error:
            state.admission.refused_by_engine(error)
            raise
        finally:
            account.end()
            tab.end()
            state.end_call()
        self.usage.prompt_tokens += sum(answer.num_prompt for answer in found)
        self.usage.total_tokens = self.usage.prompt_tokens
        self.num_bytes = sum(len(answer.values.data) for answer in found)
        return found

    async def _booked(self, request: Request) -> Answer:
        state, ticket, tab = self.call.state, self.call.stay.ticket, self.call.tab
        tab.check()
        tab.open(request)
        state.metrics.observe_started(request)
        reason, answer = "error", None
        try:
            ticket.hand_over(request.id)
            answer = await self.frontend.answer(request)
            ticket.begin(request.id)
            reason = "stop"
            self.call.running.marks.timings[request.id] = answer.timing
            state.metrics.observe_prompt(request.num_prompt, answer.num_cached)
            state.metrics.observe_stats(state.engine.stats)
        except asyncio.CancelledError:
            reason = "abort"
            raise
        finally:
            self.call.running.marks.done.add(request.id)
            own = RequestTiming(
                arrived=request.arrived, admitted=None, first_token=None, last_token=None
            )
            outcome = Outcome(
                reason=reason,
                num_output=0,
                num_preemptions=0,
                timing=own if answer is None else answer.timing,
                ended=time.monotonic(),
            )
            state.metrics.observe_finished(request, outcome)
            num_cached = 0 if answer is None else answer.num_cached
            if self.call.trace is not None:
                self.call.trace.add(request, outcome, num_cached)
            cause = "disconnect" if reason == "abort" else ""
            tab.close(request, reason, cause, num_cached)
        return answer


Build = Callable[[], msgspec.Struct]
"""Writes an answer: what takes time for many vectors."""


class Later:
    """ASGI response: what the result of `make` builds, as JSON, unless the caller leaves before."""

    def __init__(self, work: Work, make: Callable[[], Awaitable[Build]]) -> None:
        self._work = work
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Work, then answer."""

        async def body() -> bytes:
            with self._work.call.running.interruptible():
                build = await self._make()
                if self._work.num_bytes <= _INLINE_BYTES:
                    return msgspec.json.encode(build())
                return await asyncio.to_thread(lambda: msgspec.json.encode(build()))

        payload = await unless_gone(receive, body())
        await Response(payload, media_type="application/json")(scope, receive, send)


def written(answer: Answer, encoding_format: str | None) -> list[Any] | str:
    """The values as numbers, or as base64 of little-endian float32."""
    if encoding_format == "base64":
        return base64.b64encode(answer.values.data).decode("ascii")
    numbers: list[Any] = answer.floats().tolist()
    return numbers
