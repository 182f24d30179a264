"""Fields that OpenAI or vLLM document and that we do not honour yet.

Each is refused by name. A neutral value, one that asks for what happens anyway, is accepted; null always is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FALSE = (False,)

RENAMED: Mapping[str, str] = {
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_whitespace_pattern": "structured_outputs.whitespace_pattern",
}
"""Older spellings, and what is called so now."""

_GENERATE: Mapping[str, tuple[Any, ...]] = {
    "ec_transfer_params": (),
    "guided_decoding_backend": (),
    **dict.fromkeys(RENAMED, ()),
    "kv_transfer_params": (),
    "logprob_token_ids": ([],),
    "mm_payload": ("tensors",),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    "prompt_embeds": (),
    "repetition_detection": (),
    "return_mm_kwargs": _FALSE,
    "return_token_offsets": _FALSE,
    "routed_experts_prompt_start": (0,),
    "session_id": (),
    "stream_interval": (1,),
    "thinking_token_budget": (),
    "vllm_xargs": ({},),
    "watermarking": _FALSE,
}

_CHAT: Mapping[str, tuple[Any, ...]] = {
    **_GENERATE,
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "return_prompt_text": _FALSE,
    "service_tier": ("auto", "default"),
    "store": _FALSE,
    "verbosity": ("medium",),
    "web_search_options": (),
}

_POOLING: Mapping[str, tuple[Any, ...]] = {
    "activation": (),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "instruction": ("",),
    "late_interaction_params": (),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "prompt": (),
    "request_id": (),
    "returned_token_ids": (),
    "step_tag_id": (),
}
_POOLING_INPUT: Mapping[str, tuple[Any, ...]] = {
    **_POOLING,
    "add_generation_prompt": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": _FALSE,
    "messages": (),
}

NEUTRAL: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "CompletionBody": _GENERATE,
    "EmbeddingBody": _POOLING_INPUT,
    "PoolingBody": {**_POOLING_INPUT, "softmax": (), "data": ()},
    "ClassifyBody": _POOLING_INPUT,
    "ScoreBody": {**_POOLING, "items": (), "data_1": (), "data_2": ()},
    "RerankBody": {**_POOLING, "max_tokens_per_doc": (), "return_embeddings": _FALSE},
    "CohereRerankBody": {**_POOLING, "rank_fields": (), "return_documents": _FALSE},
    "ChatBody": _CHAT,
    "TokenizeBody": {
        "chat_template": (),
        "media_io_kwargs": ({},),
        "mm_processor_kwargs": ({},),
    },
    "DetokenizeBody": {},
    "ResponsesBody": {
        "cache_salt": (),
        "conversation": (),
        "max_tool_calls": (),
        "prompt": (),
        "service_tier": ("auto", "default"),
        "structured_outputs": (),
    },
    "MessagesBody": {
        "cache_salt": (),
        "container": (),
        "context_management": (),
        "inference_geo": (),
        "mcp_servers": ([],),
        "service_tier": ("auto", "standard_only"),
    },
    "CountTokensBody": {},
    "BatchBody": {"output_expires_after": ()},
}
"""Body -> field -> values that change nothing."""

MESSAGE_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": ("",),
}
"""The same inside a chat message: clients send back what they were answered, empty fields included."""
MESSAGE_FIELDS = frozenset(
    {
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "reasoning",
        "reasoning_content",
        "thinking",
    }
)
"""What chat templates read of a message."""
