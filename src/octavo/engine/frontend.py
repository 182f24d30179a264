"""From what a caller says to requests, and from events back to text. No torch, no HTTP.

Server handlers and `LLM` both stand on this: one path, so that streamed and whole answers cannot differ. Knows the
tokenizer, the chat template and the engine client; does not know JSON shapes.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from octavo.core.aio import closable
from octavo.core.errors import ContextLengthError, EngineError, RequestError, from_info
from octavo.core.params import SamplingParams
from octavo.core.pooling import no_generation
from octavo.core.request import Request
from octavo.core.result import (
    Event,
    Failed,
    Pooled,
    RequestTiming,
    TokenLogprobs,
    TokenOut,
)
from octavo.decoding.grammar.base import Vocabulary
from octavo.decoding.grammar.compiler import GrammarCompiler
from octavo.engine.ipc import Ready
from octavo.text.detokenize import Detokenizer
from octavo.text.tokenizer import Tokenizer
from octavo.text.workers import TextWorkers

T = TypeVar("T")


class Client(Protocol):
    """What a front end needs of an engine client; tests pass a fake."""

    @property
    def ready(self) -> Ready:
        """What was started. Raises EngineDeadError when the engine cannot take requests."""
        ...

    def generate(self, request: Request) -> AsyncIterator[Event]:
        """Submit, then yield events up to and including one Finished or Failed. Closing it early cancels."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request: its events end with a Finished that says abort. Unknown ids are ignored."""
        ...

    def stop(self, request_id: str) -> None:
        """A request has said all that its caller wants, though not all it could; its events are not read on."""
        ...

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Tell the engine, once, what grammars are built for; before the first request with a grammar."""
        ...


class Caller(NamedTuple):
    """Who asks: from the API key and the connection, never from the body."""

    tenant: str = ""
    cache_scope: str = ""
    priority: int = 0
    weight: float = 1.0
    deadline: float | None = None
    """As in `Request`: how long this call is worth waiting for."""
    first_token_by: float | None = None


class Usage(msgspec.Struct, kw_only=True):
    """Token counts of one call: the prompt once, the output of all its choices."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    truncated_tokens: int | None = None
    """Prompt tokens left out because the caller asked for it; None where nobody did."""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of one choice. The whole answer is the fold of its deltas."""

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    """All tokens taken since the last delta; their text may still be held back."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One per token id, where asked."""
    offsets: tuple[int, ...] = ()
    """Per token id: where in the choice's text it begins, in characters."""
    marks: tuple[tuple[int, int], ...] = ()
    """Of the special tokens that the call keeps: where each begins in the choice's text, and its id."""
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    """On a choice's first delta, where asked: entry i belongs to prompt position i + 1."""
    finish_reason: str | None = None
    """stop, length or abort, on the choice's last delta."""
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended it."""
    timing: RequestTiming | None = None
    """On the choice's last delta."""
    num_preemptions: int = 0
    num_cached: int = 0
    """On the choice's first delta with tokens, and its last: prompt tokens found in the prefix cache."""
    admitted: float | None = None
    """On its first with tokens: when it first ran (`time.monotonic()`), for what ends before the engine says `timing`."""


class Frontend:
    """Checks, tokenizes, submits, detokenizes."""

    def __init__(self, client: Client, tokenizer: Tokenizer) -> None:
        self.client = client
        self.tokenizer = tokenizer
        self.grammars = GrammarCompiler(self._vocabulary)
        self.workers = TextWorkers()

    def close(self) -> None:
        """End the processes that compile grammars, if any were started, and the threads that read long texts."""
        self.grammars.close()
        self.workers.close()

    async def aside(
        self, work: Callable[[], T], num_chars: int, *, has_template: bool = False
    ) -> T:
        """What `work` on a text of so many characters returns, from a thread that is watched."""
        job = self.workers.submit(work, num_chars, has_template=has_template)
        return await asyncio.wrap_future(job)

    async def prepare_grammars(self) -> None:
        """Have the engine read the vocabulary while nothing runs yet: with 150k tokens it can do nothing else for a second."""
        if self.client.ready.pooling is None:
            self.client.use_vocabulary(await self.grammars.learn())

    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(
            tokenizer_json=self.tokenizer.to_json(),
            eos_token_ids=self.tokenizer.eos_token_ids,
            vocab_size=self.client.ready.vocab_size,
        )

    async def with_grammar(self, request: Request) -> Request:
        """The request with what it demands of the output compiled; waits for that where it is new.

        Raises:
            RequestError: the demand cannot be met, or compiling it passes a limit.
        """
        wanted = request.params.structured_outputs
        if wanted is None:
            return request
        source = await self.grammars.compile(wanted)
        assert self.grammars.vocabulary is not None, "something was compiled for it"
        self.client.use_vocabulary(self.grammars.vocabulary)
        params = replace(request.params, structured_outputs=None)
        return replace(request, grammar=source, params=params)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Text to ids, refusing at once what could not fit.

        Raises:
            ContextLengthError: the text is so long that it cannot fit the context.
        """
        limit = self.client.ready.max_model_len
        if len(text) > limit * _MAX_CHARS_PER_TOKEN:
            raise ContextLengthError(
                f"the prompt has {len(text)} characters; this model's context is {limit} tokens.",
                param="prompt",
            )
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def build(
        self, token_ids: Sequence[int], params: SamplingParams, caller: Caller, request_id: str
    ) -> list[Request]:
        """Check a prompt against the model and make one request per choice.

        Raises:
            ContextLengthError: prompt plus max_tokens or min_tokens exceeds the context.
            RequestError: an empty prompt, or what is no id of the vocabulary.
        """
        ready = self.client.ready
        if ready.pooling is not None:
            raise no_generation(ready.pooling)
        ids = check_prompt(token_ids, ready.vocab_size)
        params.check_token_ids(ready.vocab_size)
        max_tokens = output_limit(len(ids), params.max_tokens, ready.max_model_len)
        if params.min_tokens > max_tokens:
            raise ContextLengthError(
                f"min_tokens is {params.min_tokens}; after {len(ids)} prompt tokens this model's context of "
                f"{ready.max_model_len} tokens has room for {max_tokens}.",
                param="min_tokens",
            )
        seed = secrets.randbits(62) if params.seed is None else params.seed
        eos = () if params.ignore_eos else tuple(self.tokenizer.eos_token_ids)
        bad_words = self.tokenizer.bad_word_ids(params.bad_words) if params.bad_words else ()
        arrived = time.monotonic()
        return [
            Request(
                id=request_id if params.n == 1 else f"{request_id}-{index}",
                token_ids=ids,
                params=params,
                max_tokens=max_tokens,
                seed=seed,
                arrived=arrived,
                index=index,
                eos_token_ids=eos,
                bad_words_ids=bad_words,
                priority=caller.priority,
                tenant=caller.tenant,
                weight=caller.weight,
                cache_scope=caller.cache_scope,
                deadline=caller.deadline,
                first_token_by=caller.first_token_by,
            )
            for index in range(params.n)
        ]

    def start(
        self,
        token_ids: Sequence[int],
        params: SamplingParams,
        *,
        caller: Caller = Caller(),
        request_id: str,
        kept: Mapping[int, str] | None = None,
    ) -> Generation:
        """Begin one call (all its choices). Raises as `build` does; iterate the result for deltas.

        `kept` are special tokens, by id, whose text and places are shown whatever the parameters say.
        """
        requests = self.build(token_ids, params, caller, request_id)
        return Generation(self, requests, kept)


class Generation:
    """One call in progress. `async for delta in generation`; closing the iterator cancels what still runs."""

    def __init__(
        self,
        frontend: Frontend,
        requests: list[Request],
        kept: Mapping[int, str] | None = None,
    ) -> None:
        self.requests = requests
        self.usage = Usage(prompt_tokens=requests[0].num_prompt)
        self._frontend = frontend
        self._kept = kept
        self._is_aborted = False
        self.sent: dict[int, float] = {}
        """When the engine was asked for each choice (`time.monotonic()`)."""
        self.texts: deque[tuple[float, float]] = deque(maxlen=64)
        """When tokens were last turned into text: from and to."""

    def abort(self) -> None:
        """End every choice that still runs: its last delta says abort and has what was held back."""
        self._is_aborted = True
        for request in self.requests:
            self._frontend.client.cancel(request.id)

    def __aiter__(self) -> AsyncIterator[Delta]:
        single = len(self.requests) == 1
        return self._choice(self.requests[0]) if single else self._merged()

    async def _merged(self) -> AsyncIterator[Delta]:
        """Deltas of all choices as they come. A choice that fails ends the call."""
        queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue()

        async def pump(request: Request) -> None:
            try:
                async for delta in self._choice(request):
                    queue.put_nowait(delta)
                queue.put_nowait(None)
            except Exception as error:  # edge of a task: handed to the reader, who raises it
                queue.put_nowait(error)

        tasks = [asyncio.create_task(pump(request)) for request in self.requests]
        try:
            open_choices = len(tasks)
            while open_choices:
                item = await queue.get()
                if item is None:
                    open_choices -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _choice(self, request: Request) -> AsyncIterator[Delta]:
        """Deltas of one choice; the last one carries `finish_reason`.

        Raises:
            OctavoError: its grammar cannot be had, or the engine failed this request.
        """
        fold = _Choice(request, self._frontend.tokenizer, self._kept)
        request = await self._frontend.with_grammar(request)
        if self._is_aborted:
            yield Delta(index=request.index, finish_reason="abort")
            return
        client = self._frontend.client
        self.sent[request.index] = time.monotonic()
        async with contextlib.aclosing(closable(client.generate(request))) as events:
            async for event in events:
                begun = time.monotonic()
                delta = fold.take(event)
                self.texts.append((begun, time.monotonic()))
                if delta is None:
                    continue
                self.usage.completion_tokens += len(delta.token_ids)
                if not isinstance(event, Failed):
                    self.usage.cached_tokens = max(self.usage.cached_tokens, event.num_cached)
                if delta.finish_reason is not None and isinstance(event, TokenOut):
                    client.stop(request.id)  # a stop string: it is no abort
                yield delta
                if delta.finish_reason is not None:
                    return


def fold_choice(
    request: Request,
    tokenizer: Tokenizer,
    events: Sequence[Event],
    kept: Mapping[int, str] | None = None,
) -> list[Delta]:
    """The deltas of one choice's events; `kept` as in `Frontend.start`."""
    fold = _Choice(request, tokenizer, kept)
    return [delta for event in events if (delta := fold.take(event)) is not None]


class _Choice:
    """Folds the events of one choice into deltas."""

    def __init__(
        self, request: Request, tokenizer: Tokenizer, kept: Mapping[int, str] | None
    ) -> None:
        self._request = request
        # Before min_tokens outputs the sampler masks these, so that seeing one means the engine ends there.
        self._stop_tokens = frozenset(request.eos_token_ids + request.params.stop_token_ids)
        self._detokenizer = Detokenizer(tokenizer, request.params, request.token_ids, kept=kept)

    def take(self, event: Event) -> Delta | None:
        """The delta of one event; None when there is nothing to say."""
        if isinstance(event, Failed):
            raise from_info(event.error)
        if isinstance(event, TokenOut):
            return self._tokens(event)
        if isinstance(event, Pooled):
            raise EngineError("the engine pooled a prompt that asked for text.")
        text = self._detokenizer.finish()
        return Delta(
            index=self._request.index,
            text=text.text,
            finish_reason="stop" if text.stopped is not None else event.reason,
            stop_reason=text.stopped if text.stopped is not None else event.stop_token,
            timing=event.timing,
            num_preemptions=event.num_preemptions,
            num_cached=event.num_cached,
        )

    def _tokens(self, event: TokenOut) -> Delta:
        is_end = event.token_ids[-1:] and event.token_ids[-1] in self._stop_tokens
        pushed = self._detokenizer.push(event.token_ids, ends_with_stop_token=bool(is_end))
        taken = event.token_ids[: pushed.num_tokens]
        logprobs = event.logprobs[: pushed.num_tokens] if event.logprobs is not None else None
        return Delta(
            index=self._request.index,
            text=pushed.text,
            token_ids=taken,
            logprobs=logprobs,
            offsets=pushed.offsets,
            marks=pushed.marks,
            prompt_logprobs=event.prompt_logprobs,
            finish_reason="stop" if pushed.stopped is not None else None,
            stop_reason=pushed.stopped,
            num_preemptions=event.num_preemptions,
            num_cached=event.num_cached,
            admitted=event.admitted,
        )


_MAX_CHARS_PER_TOKEN = 64
"""No tokenizer yields fewer than one token for this many characters of ordinary text; longer prompts cannot fit."""


def check_prompt(token_ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """The prompt as plain integers; refuses an empty one and what is no id of the vocabulary.

    Raises:
        RequestError: with `param` "prompt".
    """
    try:
        ids = tuple(map(operator.index, token_ids))
    except TypeError as error:
        raise RequestError(f"prompt token ids: {error}.", param="prompt") from error
    if not ids:
        raise RequestError("the prompt is empty; expected at least one token.", param="prompt")
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise RequestError(
            f"prompt token id {bad} is outside the vocabulary [0, {vocab_size}).", param="prompt"
        )
    return ids


def output_limit(num_prompt: int, max_tokens: int | None, max_model_len: int) -> int:
    """How many tokens may come out.

    Raises:
        ContextLengthError: the prompt, or prompt plus max_tokens, exceeds `max_model_len`.
    """
    room = max_model_len - num_prompt
    if room < 1:
        raise ContextLengthError(
            f"the prompt has {num_prompt} tokens; this model's context is {max_model_len} tokens and at "
            "least one is needed for output.",
            param="prompt",
            fix="Shorten the prompt.",
        )
    if max_tokens is not None and max_tokens > room:
        raise ContextLengthError(
            f"{num_prompt} prompt tokens plus max_tokens {max_tokens} make {num_prompt + max_tokens}; this "
            f"model's context is {max_model_len} tokens.",
            param="max_tokens",
            fix=f"Ask for at most {room} tokens, or shorten the prompt.",
        )
    return room if max_tokens is None else max_tokens
