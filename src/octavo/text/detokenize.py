"""One request's output tokens to text deltas: whole characters only, stop strings cut out.

It knows one request and its parameters; it does not know where tokens come from or go to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from octavo.core.params import SamplingParams
from octavo.text.stops import StopMatcher
from octavo.text.tokenizer import Tokenizer


class TextDelta(NamedTuple):
    """What became certain with some tokens."""

    text: str
    num_tokens: int
    """Tokens consumed: all that were given, or up to the one that completed a stop string."""
    stopped: str | None
    """The stop string that ended the text; stays set in every later delta."""
    offsets: tuple[int, ...]
    """Per consumed token: where in the whole output text it begins, in characters. A token that begins inside a
    character has that character's offset."""
    marks: tuple[tuple[int, int], ...] = ()
    """Of the kept special tokens among them: where the token's own text begins, and its id."""


class Detokenizer:
    """Text of one output sequence. Owner: whoever reads the request's events; not for two threads.

    The texts of all deltas and of `finish` join to `Tokenizer.decode(all ids)` cut at the stop string, however the
    ids are divided over calls. Work per token does not grow with the text. `prompt_ids` is what the output continues:
    the first word keeps its leading space where sentencepiece would drop it, and a character that the prompt began is
    finished.

    Stop strings are looked for in the text from the token after the first `min_tokens` on; the one that is complete
    first ends the text.

    `kept` are special tokens that delimit something, by id: shown whatever `skip_special_tokens` says, and marked.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        prompt_ids: Sequence[int] = (),
        *,
        kept: Mapping[int, str] | None = None,
    ) -> None:
        self._kept = kept or {}
        self._stream = tokenizer.stream(
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
            kept_ids=frozenset(self._kept),
        )
        if prompt_ids:
            self._stream.prime(prompt_ids)
        self._stops = StopMatcher(params.stop) if params.stop else None
        self._keeps_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._held = ""
        self._num_chars = 0
        self.num_tokens = 0
        """Tokens consumed so far."""
        self.stopped: str | None = None
        """The stop string that ended the text."""

    def push(self, token_ids: Sequence[int], *, ends_with_stop_token: bool = False) -> TextDelta:
        """Take the next tokens. After a stop string, nothing is consumed any more.

        With `ends_with_stop_token`, the last id is the one that ended the request (an end-of-sequence or stop token id):
        it counts, and its text is shown only if `include_stop_str_in_output` asks for it.
        """
        if self._is_over():
            return TextDelta("", 0, self.stopped, ())
        released: list[str] = []
        offsets: list[int] = []
        marks: list[tuple[int, int]] = []
        num_shown = len(token_ids) - (ends_with_stop_token and not self._keeps_stop)
        for index, token_id in enumerate(token_ids):
            offsets.append(self._num_chars)
            self.num_tokens += 1
            text = self._stream.feed(token_id) if index < num_shown else ""
            if text:
                released.append(self._release(text))
                if token_id in self._kept and not self._is_over():
                    # What the token completes stands before its own text: a character that was never finished.
                    marks.append((self._num_chars - len(self._kept[token_id]), token_id))
            if self._is_over():
                offsets = [min(offset, self._num_chars) for offset in offsets]
                break
        text = "".join(released)
        return TextDelta(text, len(offsets), self.stopped, tuple(offsets), tuple(marks))

    def finish(self) -> TextDelta:
        """The rest: what was held back for a stop string or a character that did not come."""
        if self._is_over():
            return TextDelta("", 0, self.stopped, ())
        text = self._stream.flush()
        released = self._release(text) if text else ""
        if not self._is_over():
            released, self._held = released + self._held, ""
        return TextDelta(released, 0, self.stopped, ())

    def _is_over(self) -> bool:
        return self.stopped is not None

    def _release(self, text: str) -> str:
        """What of the held and the new text can go out."""
        num_before = self._num_chars
        self._num_chars += len(text)
        if self._stops is None:
            return text
        hit = self._stops.feed(text, is_armed=self.num_tokens > self._min_tokens)
        pending, num_held = self._held + text, len(self._held)
        if hit is not None:
            cut = num_held + (hit.end if self._keeps_stop else hit.start)
            self.stopped, self._held = hit.stop, ""
            self._num_chars = num_before - num_held + cut
            return pending[:cut]
        keep = len(pending) - self._stops.num_held
        self._held = pending[keep:]
        return pending[:keep]
