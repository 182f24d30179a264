"""The request bodies, field by field: what is known, of which type, and how much of it.

A field that we know is honoured; one that others document and we do not honour yet is refused by name unless it asks
for what happens anyway (`unsupported.py`); any other is refused with the nearest known name. Every number, string, list
and object states its bound here (`caps.py` lists them, a test wants each); what holds `Any` has its nesting bounded in
`limits.py`. Knows JSON; does not know models or engines.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, field

from octavo.core.params import (
    INTEGERS,
    LOGIT_BIAS,
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORD_CHARS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_STOP_CHARS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
    MAX_TOKENS,
    NUMBERS,
)
from octavo.core.structured import (
    MAX_CHOICE_CHARS,
    MAX_CHOICES,
    MAX_GRAMMAR_CHARS,
    MAX_REGEX_CHARS,
    MAX_WHITESPACE_CHARS,
)
from octavo.server.limits import (
    MAX_BODY_BYTES,
    MAX_DESCRIPTION_CHARS,
    MAX_DOCUMENT_CHARS,
    MAX_DOCUMENTS,
    MAX_KWARGS,
    MAX_MESSAGE_FIELDS,
    MAX_MESSAGES,
    MAX_NAME_CHARS,
    MAX_PROMPT_TOKENS,
    MAX_PROMPTS,
    MAX_STRUCTURES,
    MAX_TOOLS,
    MAX_WAIT_MS,
)

Name = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
TokenIds = Annotated[list[TokenId], Meta(max_length=MAX_ALLOWED_TOKEN_IDS)]
DocumentText = Annotated[str, Meta(max_length=MAX_DOCUMENT_CHARS)]
PromptText = Annotated[str, Meta(max_length=MAX_BODY_BYTES)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Bias = Annotated[float, LOGIT_BIAS]
TokenKey = Annotated[str, Meta(pattern="^[0-9]{1,10}$", max_length=10)]
"""A token id as the key of a JSON object."""
LogitBias = Annotated[dict[TokenKey, Bias], Meta(max_length=MAX_LOGIT_BIAS)]
Milliseconds = Annotated[int, Meta(ge=1, le=MAX_WAIT_MS)]
Stops = StopText | Annotated[list[StopText], Meta(max_length=MAX_STOPS)]
StopIds = Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)]
Temperature = Annotated[float, NUMBERS["temperature"]]
TopP = Annotated[float, NUMBERS["top_p"]]
TopK = Annotated[int, INTEGERS["top_k"]]
Messages = Annotated[
    list[Annotated[dict[Name, Any], Meta(max_length=MAX_MESSAGE_FIELDS)]],
    Meta(min_length=1, max_length=MAX_MESSAGES),
]
TemplateKwargs = Annotated[dict[Name, Any], Meta(max_length=MAX_KWARGS)]
Object = Annotated[dict[Name, Any], Meta(max_length=MAX_MESSAGE_FIELDS)]
"""Of a kind that the endpoint looks into."""
ToolList = Annotated[list[Object], Meta(max_length=MAX_TOOLS)]
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
PROMPT_LISTS: dict[str, Any] = {
    "anyOf": [
        _IDS,
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"type": "string"}},
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _IDS},
    ]
}
"""What the types cannot say: token ids, texts, or lists of token ids, not mixed."""


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

    schema: Raw = field(default_factory=Raw)
    name: Name | None = None
    """For the caller's own use, as is `description`."""
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    strict: bool | None = None
    """Output is always held to the schema, and what would not be held is refused."""


class ResponseFormat(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the output has to be, as OpenAI's clients say it."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: Annotated[list[Object], Meta(max_length=MAX_STRUCTURES)] | None = None
    triggers: Annotated[list[StopText], Meta(max_length=MAX_STRUCTURES)] | None = None


Labels = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]
"""A caller's own names for a call."""


class StructuredBody(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`StructuredOutputs` as callers send it; that checks it."""

    json: Raw = field(default_factory=Raw)
    """A schema, or a string that holds one."""
    regex: Annotated[str, Meta(max_length=MAX_REGEX_CHARS)] | None = None
    choice: (
        Annotated[
            list[Annotated[str, Meta(max_length=MAX_CHOICE_CHARS)]], Meta(max_length=MAX_CHOICES)
        ]
        | None
    ) = None
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARS)] | None = None
    json_object: bool | None = None
    structural_tag: Raw = field(default_factory=Raw)
    """An object, or a string that holds one."""
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: Annotated[str, Meta(max_length=MAX_WHITESPACE_CHARS)] | None = None


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
    deadline_ms: Milliseconds | None = None
    """Milliseconds from the call's arrival after which its answer is worth nothing: it is refused where it would come
    later, and ended where it turns out to."""
    ttft_slo_ms: Milliseconds | None = None
    """Milliseconds in which the first token is wanted: the call is refused where that would not be kept."""
    request_id: Annotated[str, Meta(pattern="^[A-Za-z0-9_.:-]{1,64}$", max_length=64)] | None = None
    """Becomes the `id` of the answer. Inside the server a call has an id of its own."""
    cache_salt: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)] | None = None
    """Cached prefixes are shared only with calls of the same key and the same salt."""
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    """In logprobs, write tokens as `token_id:123`."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_TOKENS)] | None = None
    """Keep so many prompt tokens; -1: as many as fit beside the output."""
    truncation_side: Literal["left", "right"] | None = None
    """The side on which tokens are left out; left unless set."""
    use_beam_search: bool | None = None
    length_penalty: Annotated[float, Meta(ge=-16.0, le=16.0)] | None = None
    """Of beam search: the power of the output length that divides a beam's score; 1 unless set."""
    add_special_tokens: bool | None = None
    n: Annotated[int, INTEGERS["n"]] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Annotated[float, NUMBERS["min_p"]] | None = None
    presence_penalty: Annotated[float, NUMBERS["presence_penalty"]] | None = None
    frequency_penalty: Annotated[float, NUMBERS["frequency_penalty"]] | None = None
    repetition_penalty: Annotated[float, NUMBERS["repetition_penalty"]] | None = None
    logit_bias: LogitBias | None = None
    bad_words: (
        Annotated[
            list[Annotated[str, Meta(min_length=1, max_length=MAX_BAD_WORD_CHARS)]],
            Meta(max_length=MAX_BAD_WORDS),
        ]
        | None
    ) = None
    allowed_token_ids: TokenIds | None = None
    seed: Annotated[int, INTEGERS["seed"]] | None = None
    max_tokens: Annotated[int, INTEGERS["max_tokens"]] | None = None
    min_tokens: Annotated[int, INTEGERS["min_tokens"]] | None = None
    stop: Stops | None = None
    stop_token_ids: StopIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: Annotated[int, INTEGERS["prompt_logprobs"]] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredBody | None = None


class CompletionBody(GenerateBody, kw_only=True, frozen=True):
    """POST /v1/completions."""

    prompt: (
        PromptText
        | Annotated[
            list[Any],
            Meta(min_length=1, max_length=MAX_PROMPT_TOKENS, extra_json_schema=PROMPT_LISTS),
        ]
    )
    """Text, token ids, or a list of either; `openai/prompts.py` looks inside."""
    suffix: PromptText | None = None
    """Text after the gap to fill; needs a model whose tokenizer has tokens for that."""
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    """0 goes with `echo` alone: the prompt comes back, with its logprobs where asked."""
    logprobs: Annotated[int, INTEGERS["logprobs"]] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
    """Generate so many choices and answer with the n of highest mean log-probability per token."""


class ChatBody(GenerateBody, kw_only=True, frozen=True):
    """POST /v1/chat/completions."""

    messages: Messages
    metadata: Labels | None = None
    """Labels of a stored completion, and none is stored: as `user`, it changes nothing by definition."""
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    """Wins over max_tokens; without either, generation runs to the context limit."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: ToolList | None = None
    """Functions; `openai/tools.py` looks inside."""
    tool_choice: Literal["none", "auto", "required"] | Object | None = None
    """An object names one function."""
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    """False leaves the reasoning out of the answer; it is thought and counted all the same."""
    thinking_token_budget: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    """Tokens of reasoning after which its end is forced."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    echo: bool | None = None
    """Begin the answer with the text of the last message, where that is the assistant's."""
    documents: (
        Annotated[
            list[Annotated[dict[Name, DocumentText], Meta(max_length=MAX_MESSAGE_FIELDS)]],
            Meta(max_length=MAX_DOCUMENTS),
        ]
        | None
    ) = None
    """For templates that read documents."""
    chat_template_kwargs: TemplateKwargs | None = None


class TokenizeBody(msgspec.Struct, kw_only=True, frozen=True):
    """POST /tokenize: exactly one of `prompt` and `messages`."""

    model: Name | None = None
    prompt: PromptText | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    tools: ToolList | None = None


class BatchBody(msgspec.Struct, kw_only=True, frozen=True):
    """POST /v1/batches."""

    input_file_id: Name
    endpoint: Name
    completion_window: Annotated[str, Meta(pattern="^[1-9][0-9]{0,4}[smhd]$", max_length=6)]
    """Such as 24h: what has not been answered by then is not."""
    metadata: Labels | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True, frozen=True):
    """POST /detokenize."""

    model: Name | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_PROMPT_TOKENS)]
