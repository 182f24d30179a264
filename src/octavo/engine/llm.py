"""`LLM` for scripts: start an engine, hand it prompts, take the answers back in order.

    from octavo import LLM, SamplingParams

    with LLM() as llm:
        for output in llm.generate(["def add(a, b):"], SamplingParams(max_tokens=32)):
            print(output.outputs[0].text)

The same front end as the server's stands behind it; it runs in a thread with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from octavo.core.assets import tokenizer_folder
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, EngineDeadError, RequestError, did_you_mean
from octavo.core.params import PoolingParams, PoolingTask, SamplingParams
from octavo.core.result import RequestTiming, TokenLogprobs
from octavo.engine.client import EngineClient
from octavo.engine.frontend import Caller, Frontend
from octavo.engine.ipc import Ready
from octavo.engine.llm_pooling import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingCalls,
    PoolingRequestOutput,
    ScoringRequestOutput,
    classification_output,
    embedding_output,
)
from octavo.engine.pooled import PoolingFrontend, pair_up
from octavo.engine.progress import Progress
from octavo.text.chat import ChatTemplate
from octavo.text.fit import check_fit
from octavo.text.tokenizer import Tokenizer

T = TypeVar("T")
Prompt = str | Sequence[int]


class CompletionOutput(msgspec.Struct, kw_only=True):
    """One choice."""

    index: int
    text: str = ""
    token_ids: list[int] = msgspec.field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    timing: RequestTiming | None = None


class RequestOutput(msgspec.Struct, kw_only=True):
    """One prompt's answer."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0


class LLM:
    """An engine and its front end, for use from plain Python code.

    Keyword arguments are the fields of `EngineConfig`; `performance_mode` is "throughput" unless given. Close it (or
    use `with`) to end the engine process.

    Raises:
        OperatorError: the engine cannot start.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self.config = _config(model, options)
        self.tokenizer = Tokenizer.load(tokenizer_folder(self.config))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="octavo-llm", daemon=True
        )
        self._thread.start()
        self._numbers = itertools.count()
        self._is_closed = False
        try:
            self._client = self._call(self._start())
        except BaseException:
            self._end_loop()
            raise
        self._frontend = Frontend(self._client, self.tokenizer)
        atexit.register(self.close)

    async def _start(self) -> EngineClient:
        client = EngineClient(self.config)
        await client.start()
        try:
            ready = await client.wait_ready()
            is_dummy = self.config.load_format == "dummy"
            check_fit(self.tokenizer, ready.vocab_size, is_dummy=is_dummy)
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def ready(self) -> Ready:
        """What was started: limits, memory plan, start-up phases."""
        return self._client.ready

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts (text or token ids); answers come in the order of the prompts.

        Raises:
            RequestError: a prompt or its parameters cannot be honoured; nothing has run then.
            EngineDeadError: the engine is gone, or this object is closed.
        """
        if self._is_closed:
            raise EngineDeadError("this LLM is closed.", fix="Make another.")
        listed = _as_list(prompts)
        params = _params_for(sampling_params, len(listed))
        frontend = self._frontend
        ids = [frontend.encode(p) if isinstance(p, str) else list(p) for p in listed]
        for tokens, one in zip(ids, params, strict=True):
            frontend.build(tokens, one, Caller(), "check")
        self._call(self._compile(params))
        return self._call(self._run(frontend, listed, ids, params, use_tqdm))

    def chat(
        self,
        messages: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template."""
        template = ChatTemplate(self.tokenizer.chat_templates, self.tokenizer.special_tokens)
        many = [messages] if messages and isinstance(messages[0], dict) else list(messages)
        texts = [template.render(list(one), add_generation_prompt=True) for one in many]  # type: ignore[arg-type]
        ids = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return self.generate(ids, sampling_params, use_tqdm=use_tqdm)

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput]:
        """What the model's pooler makes of each prompt; by default what it is for, else `pooling_params.task`.

        Raises:
            RequestError: the model generates text, or cannot do what is asked; nothing has run then.
            EngineDeadError: the engine is gone, or this object is closed.
        """
        calls = self._pooling("pool prompts")
        task = (pooling_params or PoolingParams()).task or calls.facts.tasks[0]
        return self._pooled(calls, prompts, pooling_params, task, truncate_prompt_tokens, use_tqdm)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[EmbeddingRequestOutput]:
        """An embedding of each prompt. Raises as `encode`."""
        calls = self._pooling("embed")
        found = self._pooled(
            calls, prompts, pooling_params, "embed", truncate_prompt_tokens, use_tqdm
        )
        return [embedding_output(one) for one in found]

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[ClassificationRequestOutput]:
        """Probabilities of the model's labels for each prompt. Raises as `encode`."""
        calls = self._pooling("classify")
        found = self._pooled(
            calls, prompts, pooling_params, "classify", truncate_prompt_tokens, use_tqdm
        )
        return [classification_output(one) for one in found]

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        pooling_params: PoolingParams | None = None,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[ScoringRequestOutput]:
        """How well each text of `data_2` goes with the one of `data_1` at its place, or with its only one.

        A cross-encoder reads both together; of an embedder it is the cosine of the two embeddings. Raises as `encode`.
        """
        calls = self._pooling("score")
        pairs = pair_up(_texts(data_1), _texts(data_2), ("data_1", "data_2"))
        return self._call(
            calls.scores(pairs, pooling_params, truncate_prompt_tokens, self._progress(use_tqdm))
        )

    def _pooling(self, wanted: str) -> PoolingCalls:
        if self._is_closed:
            raise EngineDeadError("this LLM is closed.", fix="Make another.")
        frontend = PoolingFrontend(Frontend(self._client, self.tokenizer))
        limit = self.config.max_num_queued_reqs // 2 or 1
        return PoolingCalls(frontend, wanted, self._numbers, limit)

    def _pooled(
        self,
        calls: PoolingCalls,
        prompts: Prompt | Sequence[Prompt],
        params: PoolingParams | None,
        task: PoolingTask,
        truncate: int | None,
        use_tqdm: bool,
    ) -> list[PoolingRequestOutput]:
        ready = [calls.prompt(one, truncate) for one in _as_list(prompts)]
        return self._call(calls.run(ready, params, task, self._progress(use_tqdm)))

    def _progress(self, is_shown: bool) -> Callable[[int], Progress]:
        return lambda count: Progress(count, shown=is_shown)

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes, as before a measurement."""
        if self._is_closed:
            return
        self._loop.call_soon_threadsafe(self._client.reset_prefix_cache)

    def close(self) -> None:
        """End the engine process. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        atexit.unregister(self.close)
        self._frontend.close()
        self._call(self._client.close())
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        tasks: list[asyncio.Task[Any] | None] = []
        ended = threading.Lock()
        ended.acquire()

        async def run() -> T:
            tasks.append(asyncio.current_task())
            try:
                return await work
            finally:
                ended.release()

        def cancel() -> None:
            for task in tasks:
                assert task is not None
                task.cancel()

        try:
            future = asyncio.run_coroutine_threadsafe(run(), self._loop)
            # In turns: a signal that comes just before a lock is waited for does not wake the waiter (CPython). And on
            # a plain lock: an interrupt inside the future's own condition could leave that locked.
            while not ended.acquire(timeout=0.5):
                pass
            return future.result()
        except KeyboardInterrupt:
            # What runs for it in the engine ends, too. One turn later, because the task's first turn may be to come;
            # and by way of the list, because the interrupt may come before a future could be kept.
            self._loop.call_soon_threadsafe(self._loop.call_soon, cancel)
            raise

    async def _compile(self, params: Sequence[SamplingParams]) -> None:
        """What the output has to be like; before anything runs, so that a refusal comes first."""
        wanted = {one.structured_outputs for one in params if one.structured_outputs is not None}
        await asyncio.gather(*[self._frontend.grammars.compile(one) for one in wanted])

    async def _run(
        self,
        frontend: Frontend,
        prompts: list[Prompt],
        ids: list[list[int]],
        params: list[SamplingParams],
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        progress = Progress(len(prompts), shown=use_tqdm)
        outputs = [
            RequestOutput(
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_token_ids=tokens,
                outputs=[CompletionOutput(index=i) for i in range(one.n)],
            )
            for prompt, tokens, one in zip(prompts, ids, params, strict=True)
        ]
        most_choices = max((one.n for one in params), default=1)
        limit = asyncio.Semaphore(self.config.max_num_queued_reqs // 2 // most_choices or 1)
        work = [
            asyncio.ensure_future(self._one(frontend, output, one, progress, limit))
            for output, one in zip(outputs, params, strict=True)
        ]
        try:
            with progress:
                await asyncio.gather(*work)
        finally:  # one failed: cancel the others, wait for them, raise the first cause
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        return outputs

    async def _one(
        self,
        frontend: Frontend,
        output: RequestOutput,
        params: SamplingParams,
        progress: Progress,
        limit: asyncio.Semaphore,
    ) -> None:
        async with limit:
            request_id = f"llm-{next(self._numbers)}"
            generation = frontend.start(output.prompt_token_ids, params, request_id=request_id)
            async for delta in generation:
                choice = output.outputs[delta.index]
                choice.text += delta.text
                choice.token_ids.extend(delta.token_ids)
                if delta.logprobs is not None:
                    choice.logprobs = [*(choice.logprobs or []), *delta.logprobs]
                if delta.prompt_logprobs is not None:
                    output.prompt_logprobs = list(delta.prompt_logprobs)
                if delta.finish_reason is not None:
                    choice.finish_reason, choice.stop_reason = (
                        delta.finish_reason,
                        delta.stop_reason,
                    )
                    choice.timing = delta.timing
                progress.tokens(len(delta.token_ids), time.monotonic())
            output.num_cached_tokens = generation.usage.cached_tokens
            progress.finished(len(output.prompt_token_ids))


def _config(model: str | None, options: dict[str, Any]) -> EngineConfig:
    """The engine's config from keyword arguments; offline nobody waits for the next token, so steps are filled."""
    if model is not None:
        options["model"] = model
    for name in options:
        if name not in EngineConfig.__struct_fields__:
            raise ConfigError(
                f"LLM has no option {name!r}.{did_you_mean(name, EngineConfig.__struct_fields__)}",
                param=name,
            )
    try:
        config = msgspec.convert(options, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"LLM: {error}.") from error
    if config.performance_mode == "auto":
        return replace(config, performance_mode="throughput")
    return config


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, or several, as a list."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]  # a str, or a sequence of ints
    return list(prompts)  # type: ignore[arg-type]


def _texts(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _params_for(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(
            f"{len(params)} sampling params for {count} prompts; expected one, or one each.",
            param="sampling_params",
        )
    return list(params)
