"""`echo`: the prompt before its completion, and `max_tokens: 0`: the prompt alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from octavo.core.aio import closable
from octavo.core.result import TokenLogprobs
from octavo.engine.frontend import Delta, Generation, Usage
from octavo.server.openai.logprobs import CompletionLogprobs, Name, echoed_logprobs, trimmed
from octavo.server.schema import CompletionBody
from octavo.text.tokenizer import Tokenizer


class Echo:
    """One prompt as its answer shows it.

    A prompt that came as text is shown as it came (unless it was truncated); one that came as ids, as their text.
    """

    def __init__(
        self, tokenizer: Tokenizer, body: CompletionBody, index: int, ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._ids = ids
        stream = tokenizer.stream(
            skip_special_tokens=body.skip_special_tokens is not False,
            spaces_between_special_tokens=body.spaces_between_special_tokens is not False,
        )
        offsets: list[int] = []
        parts: list[str] = []
        size = 0
        for token_id in ids:
            offsets.append(size)
            parts.append(stream.feed(token_id))
            size += len(parts[-1])
        given = body.prompt if isinstance(body.prompt, str) else body.prompt[index]
        decoded = "".join([*parts, stream.flush()])
        is_whole = isinstance(given, str) and body.truncate_prompt_tokens is None
        self.text: str = given if is_whole and isinstance(given, str) else decoded
        self._offsets = [min(offset, len(self.text)) for offset in offsets]

    def logprobs(
        self, rows: Sequence[TokenLogprobs], most: int, name: Name | None
    ) -> CompletionLogprobs:
        """Logprobs of the prompt's tokens; the first has none."""
        kept = [trimmed(row, most) for row in rows]
        return echoed_logprobs(self._tokenizer, self._ids, kept, self._offsets, name)


class PromptOnly(Generation):
    """A generation of which only the prompt is answered: its one token, which no engine can leave out, is dropped."""

    def __init__(self, generation: Generation) -> None:
        self.requests = generation.requests
        self.sent, self.texts = generation.sent, generation.texts
        self._generation = generation

    def abort(self) -> None:
        """End the one that is answered from."""
        self._generation.abort()

    @property
    def usage(self) -> Usage:  # type: ignore[override]  # an attribute there
        """The usage without that token."""
        return replace(self._generation.usage, completion_tokens=0)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Deltas without text and tokens."""
        async with aclosing(closable(self._generation)) as deltas:
            async for delta in deltas:
                reason = "length" if delta.finish_reason == "stop" else delta.finish_reason
                yield replace(
                    delta,
                    text="",
                    token_ids=(),
                    logprobs=None if delta.logprobs is None else (),
                    offsets=(),
                    finish_reason=reason,
                    stop_reason=None,
                )
