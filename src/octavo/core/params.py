"""What a caller may ask of sampling and pooling, checked once, here.

A `SamplingParams` that exists is valid: every number is finite and in range, every list is bounded. Nothing below
this module checks again. Fields bear the names of the OpenAI and vLLM interfaces. It does not know vocabularies;
ids against a vocabulary are checked where the vocabulary is known (`check_token_ids`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NoReturn, get_args

import msgspec
from msgspec import Meta

from octavo.core.errors import RequestError
from octavo.core.structured import StructuredOutputs

# Caps on everything that a caller can make long (security class: unbounded sizes and fan-out).
MAX_N = 64
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 256
MAX_BAD_WORD_CHARS = 256
MAX_ALLOWED_TOKEN_IDS = 262_144
MAX_LOGPROBS = 20
MAX_TOKENS = 1 << 24
MAX_SEED = (1 << 63) - 1

INTEGERS: Mapping[str, Meta] = {
    "n": Meta(ge=1, le=MAX_N),
    "top_k": Meta(ge=-1, le=MAX_TOKENS),
    "min_tokens": Meta(ge=0, le=MAX_TOKENS),
    "seed": Meta(ge=-MAX_SEED - 1, le=MAX_SEED),
    "max_tokens": Meta(ge=1, le=MAX_TOKENS),
    "logprobs": Meta(ge=0, le=MAX_LOGPROBS),
    "prompt_logprobs": Meta(ge=0, le=MAX_LOGPROBS),
}
NUMBERS: Mapping[str, Meta] = {
    "temperature": Meta(ge=0.0, le=2.0**16),
    "top_p": Meta(gt=0.0, le=1.0),
    "min_p": Meta(ge=0.0, le=1.0),
    "presence_penalty": Meta(ge=-2.0, le=2.0),
    "frequency_penalty": Meta(ge=-2.0, le=2.0),
    "repetition_penalty": Meta(gt=0.0, le=100.0),
}
"""The range of every number, once: `server/schema.py` states the same rows to callers."""
LOGIT_BIAS = Meta(ge=-100.0, le=100.0)
_OPTIONAL = ("seed", "max_tokens", "logprobs", "prompt_logprobs")

_SWITCHES = (
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen and when to stop.

    `top_k` 0 or -1 means no limit. `max_tokens` None means up to the context limit. `logprobs` None means none,
    0 means only the chosen token's. `temperature` below 1e-5 is greedy.

    Raises:
        RequestError: a field is out of range; `param` names it.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        for name, span in INTEGERS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _check_int(name, value, span)
        for name, span in NUMBERS.items():
            _check_float(name, getattr(self, name), span)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            _refuse("min_tokens", self.min_tokens, f"at most max_tokens ({self.max_tokens})")
        _check_strings("stop", self.stop, MAX_STOPS, MAX_STOP_CHARS)
        _check_strings("bad_words", self.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARS)
        _check_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        if self.allowed_token_ids is not None:
            _check_ids("allowed_token_ids", self.allowed_token_ids, MAX_ALLOWED_TOKEN_IDS)
            if not self.allowed_token_ids:
                _refuse("allowed_token_ids", [], "at least one token id")
        if self.logit_bias is not None:
            _check_bias(self.logit_bias)
        for name in _SWITCHES:
            _check_bool(name, getattr(self, name))
        if not isinstance(self.structured_outputs, StructuredOutputs | None):
            _refuse("structured_outputs", self.structured_outputs, "a StructuredOutputs")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < 1e-5

    def check_token_ids(self, vocab_size: int) -> None:
        """Check every token id against the vocabulary.

        Raises:
            RequestError: an id is outside [0, vocab_size).
        """
        groups: tuple[tuple[str, Iterable[int]], ...] = (
            ("stop_token_ids", self.stop_token_ids),
            ("allowed_token_ids", self.allowed_token_ids or ()),
            ("logit_bias", self.logit_bias or ()),
        )
        for name, ids in groups:
            for token_id in ids:
                if not 0 <= token_id < vocab_size:
                    _refuse(name, token_id, f"a token id in [0, {vocab_size})")


PoolingTask = Literal["embed", "classify", "score", "token_embed", "token_classify"]
"""What is made of the final hidden states. The `token_` ones give a row per token of the prompt."""


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller may ask of a pooled (embedding, score, class) output.

    `task` None means what the method at hand stands for. `use_activation` None or true: embeddings are normalized where
    the model's own are, and logits become probabilities; false leaves both as they are. `skip_reading_prefix_cache`
    None leaves it to what the pooling needs.

    Raises:
        RequestError: a field is out of range; `param` names it.
    """

    task: PoolingTask | None = None
    dimensions: int | None = None
    """Keep so many features of an embedding; the model says which."""
    use_activation: bool | None = None
    skip_reading_prefix_cache: bool | None = None

    def __post_init__(self) -> None:
        if self.dimensions is not None:
            _check_int("dimensions", self.dimensions, Meta(ge=1, le=MAX_TOKENS))
        if self.task is not None and self.task not in get_args(PoolingTask):
            _refuse("task", self.task, f"one of {', '.join(get_args(PoolingTask))}")
        for name in ("use_activation", "skip_reading_prefix_cache"):
            if getattr(self, name) is not None:
                _check_bool(name, getattr(self, name))


def _refuse(name: str, given: object, expected: str) -> NoReturn:
    raise RequestError(f"{name} is {given!r}; expected {expected}.", param=name)


def _check_int(name: str, value: object, span: Meta) -> None:
    low, high = span.ge, span.le
    assert low is not None and high is not None, name
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        _refuse(name, value, f"an integer from {low} to {high}")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        _refuse(name, value, "true or false")


def _check_float(name: str, value: float, span: Meta) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        _refuse(name, value, "a finite number")
    low, high = span.gt if span.ge is None else span.ge, span.le
    assert low is not None and high is not None, name
    if not low <= value <= high or value == span.gt:
        bracket = "[" if span.gt is None else "("
        _refuse(name, value, f"a number in {bracket}{low:g}, {high:g}]")


def _check_strings(name: str, values: object, most: int, most_chars: int) -> None:
    if not isinstance(values, tuple | list):  # a string, too, has a length and strings in it
        _refuse(name, values, "a list of strings")
    if len(values) > most:
        _refuse(name, f"a list of {len(values)}", f"at most {most} strings")
    for value in values:
        if not isinstance(value, str) or not value or len(value) > most_chars:
            shown = value[:32] if isinstance(value, str) else value
            _refuse(name, shown, f"non-empty strings of at most {most_chars} characters")


def _check_bias(bias: object) -> None:
    if not isinstance(bias, dict):
        _refuse("logit_bias", bias, "token ids with a number each")
    _check_ids("logit_bias", list(bias), MAX_LOGIT_BIAS)
    for value in bias.values():
        _check_float("logit_bias", value, LOGIT_BIAS)


def _check_ids(name: str, values: object, most: int) -> None:
    if not isinstance(values, tuple | list):
        _refuse(name, values, "a list of token ids")
    if len(values) > most:
        _refuse(name, f"a list of {len(values)}", f"at most {most} token ids")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            _refuse(name, value, "non-negative token ids")
