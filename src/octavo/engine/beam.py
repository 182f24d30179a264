"""Beam search in front of the engine: every step asks for one token after each beam, with its likeliest neighbours.

The engine knows nothing of beams; the prefix cache makes the steps cheap. Scores, pruning and the moment to stop are
those of the beam search of transformers with `early_stopping=False`: a beam's score is the sum of its tokens'
log-probabilities over its output length to the power of `length_penalty`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from octavo.core.aio import closable
from octavo.core.errors import RequestError, from_info
from octavo.core.params import MAX_LOGPROBS, SamplingParams
from octavo.core.request import Request
from octavo.core.result import Event, Failed, Finished, RequestTiming, TokenLogprobs, TokenOut
from octavo.engine.frontend import Delta, Frontend, Generation, fold_choice


class Beam(NamedTuple):
    """One hypothesis."""

    tokens: tuple[int, ...] = ()
    total: float = 0.0
    """Sum of its tokens' log-probabilities."""
    rows: tuple[TokenLogprobs, ...] = ()
    """One per token."""
    score: float = 0.0
    """Set when it has ended."""


def check_width(width: int, num_ends: int) -> None:
    """Refuse a search that needs more neighbours per token than the engine tells.

    Raises:
        RequestError: naming n, which is the width.
    """
    if width + num_ends > MAX_LOGPROBS:
        raise RequestError(
            f"n is {width} with use_beam_search and {num_ends} tokens that end the text; expected at most"
            f" {MAX_LOGPROBS - num_ends}.",
            param="n",
        )


class BeamSearch:
    """The search itself: probabilities in, hypotheses out. Asks nobody."""

    def __init__(
        self, width: int, ends: Sequence[int], max_tokens: int, length_penalty: float
    ) -> None:
        self.running = [Beam()]
        self.ended: list[Beam] = []
        """Best first; at most `width`."""
        self._width = width
        self._ends = frozenset(ends)
        self._max_tokens = max_tokens
        self._penalty = length_penalty

    @property
    def num_tops(self) -> int:
        """How many likeliest tokens a step must know per beam."""
        return self._width + len(self._ends)

    def best(self, count: int) -> list[Beam]:
        """The best hypotheses so far, ended or not; empty ones where there are too few."""
        scale = max(1, len(self.running[0].tokens) if self.running else 1) ** self._penalty
        going = [beam._replace(score=beam.total / scale) for beam in self.running]
        known = sorted([*self.ended, *going], key=lambda beam: -beam.score)
        return (known + [Beam()] * count)[:count]

    def advance(self, rows: Sequence[TokenLogprobs]) -> bool:
        """Take the likeliest next tokens of each running beam; whether to go on.

        `rows[i].token_ids[1:]` follow `running[i]`, most likely first.
        """
        length = len(self.running[0].tokens) + 1
        grown = [
            Beam((*beam.tokens, token), beam.total + logprob, (*beam.rows, _row_of(row, rank)))
            for beam, row in zip(self.running, rows, strict=True)
            for rank, (token, logprob) in enumerate(
                zip(row.token_ids[1:], row.logprobs[1:], strict=True), start=1
            )
        ]
        grown.sort(key=lambda beam: -beam.total)
        kept = grown[: self._width * (1 + len(self._ends))]
        is_last = length >= self._max_tokens
        scale = length**self._penalty
        # Only those among the best may end; the others are there so that enough remain to go on.
        self.ended += [
            beam._replace(score=beam.total / scale)
            for beam in kept[: self._width]
            if is_last or beam.tokens[-1] in self._ends
        ]
        self.ended.sort(key=lambda beam: -beam.score)
        del self.ended[self._width :]
        open_beams = [beam for beam in grown if beam.tokens[-1] not in self._ends]
        self.running = open_beams[: self._width]
        if is_last or not self.running:
            return False
        best = self.running[0].total / scale
        return len(self.ended) < self._width or best > self.ended[-1].score


def _row_of(row: TokenLogprobs, rank: int) -> TokenLogprobs:
    """The row with its rank-th likeliest token as the one at hand."""
    return TokenLogprobs(
        (row.token_ids[rank], *row.token_ids[1:]), (row.logprobs[rank], *row.logprobs[1:]), rank
    )


class BeamGeneration(Generation):
    """A call whose choices are the best beams. Every choice comes as one delta, when the search has ended."""

    def __init__(
        self,
        frontend: Frontend,
        requests: list[Request],
        length_penalty: float,
        kept: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(frontend, requests, kept)
        first = requests[0]
        ends = dict.fromkeys((*first.eos_token_ids, *first.params.stop_token_ids))
        check_width(len(requests), len(ends))
        self._search = BeamSearch(len(requests), tuple(ends), first.max_tokens, length_penalty)
        self._asked: list[Request] = []
        """Of the step under way."""

    def abort(self) -> None:
        """End the search: the best beams so far are the answer."""
        self._is_aborted = True
        for request in self._asked:
            self._frontend.client.cancel(request.id)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Deltas of all choices, best first.

        Raises:
            OctavoError: the engine failed a step.
        """
        search, step, began = self._search, 0, 0.0
        while not self._is_aborted:
            outs = await self._step(search, step)
            if outs is None:
                break
            began = began or time.monotonic()
            if step == 0:
                self.usage.cached_tokens = outs[0].num_cached
            step += 1
            if not search.advance([out.logprobs[0] for out in outs if out.logprobs]):
                break
        ended = time.monotonic()
        beams = search.best(len(self.requests)) if self._is_aborted else search.ended
        for request, beam in zip(self.requests, beams, strict=True):
            for delta in self._answer(request, beam, began, ended):
                self.usage.completion_tokens += len(delta.token_ids)
                yield delta

    async def _step(self, search: BeamSearch, step: int) -> list[TokenOut] | None:
        """The next token of every running beam, as the engine says it; None when the search was ended meanwhile."""
        first = self.requests[0]
        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=search.num_tops)
        self._asked = asked = [
            replace(
                first,
                id=f"{first.id}-{step}.{index}",
                token_ids=first.token_ids + beam.tokens,
                params=params,
                max_tokens=1,
                eos_token_ids=(),
                bad_words_ids=(),
            )
            for index, beam in enumerate(search.running)
        ]
        work = [asyncio.ensure_future(self._one(request)) for request in asked]
        try:
            outs = await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        return None if self._is_aborted else [out for out in outs if out is not None]

    async def _one(self, request: Request) -> TokenOut | None:
        out: TokenOut | None = None
        async with contextlib.aclosing(closable(self._frontend.client.generate(request))) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise from_info(event.error)
                if isinstance(event, TokenOut):
                    out = event
        assert out is not None or self._is_aborted, "a request that finished has its one token"
        return out

    def _answer(self, request: Request, beam: Beam, began: float, ended: float) -> list[Delta]:
        """A beam as the deltas of a choice: folded from the events that an engine would have sent."""
        asked = request.params.logprobs
        rows = None
        if asked is not None:
            rows = tuple(
                TokenLogprobs(row.token_ids[: 1 + asked], row.logprobs[: 1 + asked], row.rank)
                for row in beam.rows
            )
        last = beam.tokens[-1] if beam.tokens else None
        is_stop = last in request.eos_token_ids or last in request.params.stop_token_ids
        end = Finished(
            id=request.id,
            reason="abort" if self._is_aborted else "stop" if is_stop else "length",
            stop_token=last if last in request.params.stop_token_ids else None,
            num_prompt=request.num_prompt,
            num_output=len(beam.tokens),
            num_cached=self.usage.cached_tokens,
            num_preemptions=0,
            timing=RequestTiming(
                arrived=request.arrived, admitted=None, first_token=began, last_token=ended
            ),
        )
        events: list[Event] = [end]
        if beam.tokens:
            events.insert(0, TokenOut(id=request.id, token_ids=beam.tokens, logprobs=rows))
        return fold_choice(request, self._frontend.tokenizer, events, self._kept)
