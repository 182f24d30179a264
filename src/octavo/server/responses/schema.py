"""The body of a call of /v1/responses, field by field."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from octavo.core.params import INTEGERS, MAX_LOGPROBS, MAX_TOKENS, NUMBERS
from octavo.server.limits import MAX_MESSAGES
from octavo.server.schema import (
    Labels,
    LogitBias,
    Milliseconds,
    Name,
    Object,
    PromptText,
    StopIds,
    Stops,
    Temperature,
    TemplateKwargs,
    ToolList,
    TopK,
    TopP,
)


class ReasoningOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How much is thought."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto"] | None = None
    """auto: where there is one. There is none here: the reasoning itself is in the answer."""


class TextOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The shape of the text."""

    format: Object | None = None
    verbosity: Literal["medium"] | None = None
    """What is said without being told otherwise."""


class ResponseStreamOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How a stream is written."""

    include_obfuscation: Literal[False] | None = None


LOGPROBS = "message.output_text.logprobs"
MAX_INCLUDED = 16


class ResponsesBody(msgspec.Struct, kw_only=True, frozen=True):
    """POST /v1/responses. None means not set."""

    input: PromptText | Annotated[list[Object], Meta(max_length=MAX_MESSAGES)]
    model: Name | None = None
    instructions: PromptText | None = None
    previous_response_id: Name | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    metadata: Labels | None = None
    include: Annotated[list[Name], Meta(max_length=MAX_INCLUDED)] | None = None
    """What else to answer with: `message.output_text.logprobs`."""
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """So many of the likeliest tokens at each place; more than 0 asks for log-probabilities, too."""
    truncation: Literal["auto", "disabled"] | None = None
    """auto: where the conversation does not fit, its oldest items are left out."""
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    tools: ToolList | None = None
    tool_choice: Literal["none", "auto", "required"] | Object | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include_reasoning: bool | None = None
    user: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] | None = None
    deadline_ms: Milliseconds | None = None
    """Milliseconds from the call's arrival after which its answer is worth nothing: it is refused where it would come
    later, and ended where it turns out to."""
    ttft_slo_ms: Milliseconds | None = None
    """Milliseconds in which the first token is wanted: the call is refused where that would not be kept."""
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Annotated[float, NUMBERS["min_p"]] | None = None
    presence_penalty: Annotated[float, NUMBERS["presence_penalty"]] | None = None
    frequency_penalty: Annotated[float, NUMBERS["frequency_penalty"]] | None = None
    repetition_penalty: Annotated[float, NUMBERS["repetition_penalty"]] | None = None
    logit_bias: LogitBias | None = None
    seed: Annotated[int, INTEGERS["seed"]] | None = None
    stop: Stops | None = None
    stop_token_ids: StopIds | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None


SAME_IN_CHAT = (
    "model",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "priority",
    "deadline_ms",
    "ttft_slo_ms",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "parallel_tool_calls",
    "include_reasoning",
    "chat_template_kwargs",
)
"""Fields that a chat call has under the same name."""
