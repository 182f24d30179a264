"""Runs the generations of a call as one stream of deltas, and books every request of it exactly once.

However a call ends - done, failed, caller gone - each of its requests is observed as started and as finished.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from octavo.core.aio import closable
from octavo.core.errors import OctavoError, OverloadError
from octavo.core.log import get_logger
from octavo.core.request import Request
from octavo.core.result import RequestTiming
from octavo.engine.frontend import Delta, Generation
from octavo.meter.metrics import Metrics, Outcome
from octavo.server.call import Call
from octavo.server.costs.budgets import BudgetError
from octavo.server.costs.tab import Tab
from octavo.server.marks import Marks

logger = get_logger(__name__)

Item = tuple[int, Delta]
ABORTED = "octavo:aborted_tokens"


async def metered(call: Call, generations: Sequence[Generation]) -> AsyncGenerator[Item, None]:
    """(prompt index, delta) of all generations as they come. Closing it cancels what still runs.

    Raises:
        OctavoError: a request failed; the others of the call are cancelled.
    """
    state, account, tab = call.state, call.allowance, call.tab
    call.running.marks.prepared = time.monotonic()
    tab.begin(partial(_abort, generations))
    try:
        account.begin(sum(generation.usage.prompt_tokens for generation in generations))
    except OctavoError:
        tab.end()
        raise
    books = {
        (prompt_index, request.index): _Book(state.metrics, request, call.running.marks)
        for prompt_index, generation in enumerate(generations)
        for request in generation.requests
    }
    ticket = call.stay.take()
    for request in (request for generation in generations for request in generation.requests):
        ticket.hand_over(request.id)
        tab.open(request)
    state.begin_call()
    reason, cause = "error", ""
    running = call.running
    try:
        with state.calls.held(running), running.generating(generations):
            async with aclosing(_merged(generations)) as items:
                async for item in items:
                    book = books[item[0], item[1].index]
                    book.take(item[1])
                    account.spend(len(item[1].token_ids))
                    tab.add_output(book.request.id, len(item[1].token_ids))
                    if item[1].token_ids or item[1].finish_reason is not None:
                        ticket.begin(book.request.id)
                    stats = state.engine.stats
                    state.metrics.observe_stats(stats)
                    state.admission.observe(stats)
                    yield item
        ticket.end([book.num_output for book in books.values()])
    except (asyncio.CancelledError, GeneratorExit):
        reason, cause = "abort", "disconnect"
        raise
    except BudgetError:
        reason, cause = "abort", "budget"
        raise
    except OverloadError as error:
        state.admission.refused_by_engine(error)
        raise
    except OctavoError as error:
        cause = "deadline" if error.code.startswith("deadline") else ""
        raise
    finally:
        ticket.close()
        account.end()
        state.end_call()
        cause = "api" if running.is_ended else cause
        for book in books.values():
            book.close(reason)
            book.count_waste(cause)
            if call.trace is not None and book.outcome is not None:
                call.trace.add(book.request, book.outcome, book.num_cached)
            book.settle(tab, cause)
        tab.end()
        if state.config.enable_log_requests:
            _log(call, list(books.values()))


def _abort(generations: Sequence[Generation]) -> None:
    for generation in generations:
        generation.abort()


async def _merged(generations: Sequence[Generation]) -> AsyncGenerator[Item, None]:
    """Deltas of several prompts, in the order in which they come."""
    if len(generations) == 1:
        async with aclosing(closable(generations[0])) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    sources = [closable(generation) for generation in generations]
    waiting = {asyncio.ensure_future(anext(source)): i for i, source in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = waiting.pop(task)
                try:
                    delta = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(sources[index]))] = index
                yield index, delta
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for source in sources:
            await source.aclose()


class _Book:
    """One request's entry in the metrics. Owner: `metered`."""

    def __init__(self, metrics: Metrics, request: Request, marks: Marks) -> None:
        self._marks = marks
        self.request = request
        self.reason = ""
        self.num_output = 0
        self.num_cached = 0
        self.outcome: Outcome | None = None
        """Once it has ended."""
        self._metrics = metrics
        self._admitted: float | None = None
        self._timing: RequestTiming | None = None
        self._num_preemptions = 0
        self._first: float | None = None
        self._last: float | None = None
        metrics.observe_started(request)

    def take(self, delta: Delta) -> None:
        """Book a delta."""
        self._num_preemptions = max(self._num_preemptions, delta.num_preemptions)
        if delta.token_ids:
            now = time.monotonic()
            if self._last is None:
                self._first, self._admitted = now, delta.admitted
                self._metrics.observe_first_token(now - self.request.arrived)
                self._begin(delta.num_cached)
            else:
                self._metrics.observe_gap(now - self._last)
            self._last = self._marks.last[self.request.id] = now
            self._metrics.observe_tokens(len(delta.token_ids))
            self.num_output += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._marks.done.add(self.request.id)
            if delta.timing is not None and delta.timing.admitted is not None:
                self._timing = self._marks.timings[self.request.id] = delta.timing
                if self._last is None and delta.finish_reason != "abort":  # no output was asked for
                    self._begin(delta.num_cached)
            self.close(delta.finish_reason)

    def _begin(self, num_cached: int) -> None:
        self.num_cached = num_cached
        self._metrics.observe_prompt(self.request.num_prompt, num_cached)

    def close(self, reason: str) -> None:
        """Book the end, once."""
        if self.reason:
            return
        self.reason = reason
        arrived = self.request.arrived
        # A stop string, a failure or an abort leaves us without some of the engine's times: ours stand in.
        own = RequestTiming(
            arrived=arrived,
            admitted=self._admitted,
            first_token=self._first,
            last_token=self._last,
        )
        self.outcome = Outcome(
            reason=reason,
            num_output=self.num_output,
            num_preemptions=self._num_preemptions,
            timing=self._timing or own,
            ended=time.monotonic(),
        )
        self._metrics.observe_finished(self.request, self.outcome)

    def settle(self, tab: Tab, cause: str) -> None:
        """Say what it came to, on what the call spends."""
        tab.close(self.request, self.reason, cause, self.num_cached)

    def count_waste(self, cause: str) -> None:
        """Book the tokens of a request that ended before its own end."""
        if self.reason != "abort" and cause != "deadline":
            return
        cause = cause or "shutdown"
        # Choices share their prompt.
        if self._first is not None and self.request.index == 0:
            self._metrics.count(ABORTED, self.request.num_prompt, cause, "prompt")
        self._metrics.count(ABORTED, self.num_output, cause, "output")


def _log(call: Call, books: Sequence[_Book]) -> None:
    first = books[0].request
    fields: dict[str, Any] = {
        "request_id": call.id,
        "num_prompt": first.num_prompt,
        "num_output": sum(book.num_output for book in books),
        "finish_reasons": sorted({book.reason for book in books}),
        "seconds": round(time.monotonic() - first.arrived, 6),
    }
    said = ""
    limit = call.state.config.max_log_len
    if limit:  # a character is at least a byte of a token, and a token has one at least
        shown = call.state.frontend.tokenizer.decode(list(first.token_ids[:limit]))[:limit]
        fields["prompt"] = shown
        said = f", prompt {shown!r}"
    logger.info(
        "request %s: %d prompt tokens, %d output tokens, %s, %.3f s%s",
        call.id,
        fields["num_prompt"],
        fields["num_output"],
        ",".join(fields["finish_reasons"]),
        fields["seconds"],
        said,
        extra={"fields": fields},
    )
