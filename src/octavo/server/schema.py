"""The request bodies, field by field: what is known, of which type, and how much of it.

A field that we know is honoured; one that others document and we do not honour yet is refused by name unless it asks
for what happens anyway (`unsupported.py`); any other is refused with the nearest known name. Numbers in ranges that
`SamplingParams` checks are not checked twice. Knows JSON; does not know models or engines.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from octavo.core.params import MAX_LOGPROBS, MAX_TOKENS
from octavo.server.limits import (
    MAX_DESCRIPTION_CHARS,
    MAX_MESSAGES,
    MAX_NAME_CHARS,
    MAX_TOOLS,
)

Name = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
TokenIds = list[Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]]


class StreamOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How a stream ends."""

    include_usage: bool | None = None
    """A last chunk with empty choices and the usage of the call."""
    continuous_usage_stats: bool | None = None
    """Usage so far on every chunk."""
    include_obfuscation: Literal[False] | None = None
    """Padding against eavesdroppers who measure chunks; there is none here to leave out."""


class JsonSchemaFormat(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The `json_schema` of a response format."""

    schema: Raw = Raw()
    name: Name | None = None
    """For the caller's own use, as is `description`."""
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    strict: bool | None = None
    """Output is always held to the schema, and what would not be held is refused."""


class ResponseFormat(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the output has to be, as OpenAI's clients say it."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None


class StructuredBody(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`StructuredOutputs` as callers send it; that checks it."""

    json: Raw = Raw()
    """A schema, or a string that holds one."""
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Raw = Raw()
    """An object, or a string that holds one."""
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None


class GenerateBody(msgspec.Struct, kw_only=True, frozen=True):
    """What completions and chat completions share. None means not set.

    The fields named as in `SamplingParams` go there as they are; it checks their ranges.
    """

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None
    """Accepted for those who send it; it changes nothing by definition."""
    safety_identifier: Name | None = None
    """What `user` is called now; as above."""
    prompt_cache_key: Name | None = None
    """A hint which calls share a prefix; here prefixes are found by their tokens alone."""
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] | None = None
    return_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: TokenIds | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredBody | None = None


class CompletionBody(GenerateBody, kw_only=True, frozen=True):
    """POST /v1/completions."""

    prompt: str | list[Any]
    """Text, token ids, or a list of either; `openai/prompts.py` looks inside."""
    logprobs: int | None = None


class ChatBody(GenerateBody, kw_only=True, frozen=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    """Wins over max_tokens; without either, generation runs to the context limit."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None
    """Functions; `openai/tools.py` looks inside."""
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    """An object names one function."""
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    """False leaves the reasoning out of the answer; it is thought and counted all the same."""
    thinking_token_budget: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    """Tokens of reasoning after which its end is forced."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )


class TokenizeBody(msgspec.Struct, kw_only=True, frozen=True):
    """POST /tokenize: exactly one of `prompt` and `messages`."""

    model: Name | None = None
    prompt: str | None = None
    messages: (
        Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)] | None
    ) = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True, frozen=True):
    """POST /detokenize."""

    model: Name | None = None
    tokens: TokenIds
