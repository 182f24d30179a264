"""Calls to be ended at every state, and servers for them: a tiny model that talks, and one that embeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cuts import ROUND, Bench, Case
from direct_engine import state_of
from fakes import byte_tokenizer
from local_engine import write_tiny
from octavo.server.openai import pooled, prompts
from octavo.text.chat import ChatTemplate
from talks import TEMPLATE

CHATS, TEXTS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
USER = [{"role": "user", "content": "Say something."}]
CHAT: dict[str, Any] = {"messages": USER, "max_tokens": 5, "temperature": 0}
TEXT: dict[str, Any] = {"prompt": "a b c d e f g h", "max_tokens": 5, "temperature": 0}
SAY: dict[str, Any] = {"input": "Say something.", "max_output_tokens": 5, "temperature": 0}
MESSAGE: dict[str, Any] = {"model": "model", "messages": USER, "max_tokens": 5}
COHERE: dict[str, Any] = {"model": "model", "query": "a b", "documents": ["c", "d e"]}
LONG = "x" * 100
"""Two chunks of prompt."""
TURNS = [{"role": "user", "content": text * 170} for text in "abc"]
"""Too much by one, of which two may be left out."""
FORMAT = {"regex": f"a{ROUND}[a-z]{{4}}"}
"""New each time, so that it has to be compiled."""
TOOL = {"type": "function", "function": {"name": f"now{ROUND}"}}
GOLDEN = Case(CHATS, {**CHAT, "max_tokens": 8, "seed": 5, "temperature": 1.0, "stream": True})
EMBEDDING = Case("/v1/embeddings", {"input": ["a b c", "d e", LONG]})

TALKS: dict[str, Case] = {
    "chat stream": Case(CHATS, {**CHAT, "stream": True}),
    "chat": Case(CHATS, {**CHAT, "n": 2, "seed": 1, "temperature": 1.0, "max_tokens": 3}),
    "chat format": Case(CHATS, {**CHAT, "structured_outputs": FORMAT, "max_tokens": 3}),
    "tools": Case(CHATS, {**CHAT, "tools": [TOOL], "tool_choice": "required", "max_tokens": 3}),
    "chunked": Case(TEXTS, {**TEXT, "prompt": LONG, "stream": True, "max_tokens": 2}),
    "prompts": Case(
        TEXTS,
        {**TEXT, "prompt": ["a", "b"], "seed": 1, "temperature": 1, "max_tokens": 2},
    ),
    "echo": Case(TEXTS, {**TEXT, "echo": True, "max_tokens": 0, "logprobs": 1}),
    "beams": Case(TEXTS, {**TEXT, "n": 2, "use_beam_search": True, "max_tokens": 3}),
    "format": Case(TEXTS, {**TEXT, "structured_outputs": FORMAT, "max_tokens": 3}),
    "refused": Case(TEXTS, {**TEXT, "max_tokens": -1}),
    "within": Case(TEXTS, TEXT, "WITHIN"),
    "response stream": Case(RESPONSES, {**SAY, "stream": True}),
    "response": Case(RESPONSES, SAY),
    "cut to fit": Case(RESPONSES, {**SAY, "input": TURNS, "truncation": "auto"}),
    "background": Case(RESPONSES, {**SAY, "background": True}),
    "message stream": Case("/v1/messages", {**MESSAGE, "stream": True}),
    "message": Case("/v1/messages", MESSAGE),
    "count": Case("/v1/messages/count_tokens", {"model": "model", "messages": USER}),
    "tokenize": Case("/tokenize", {"prompt": LONG}),
    "tokenize chat": Case("/tokenize", {"messages": USER}),
    "detokenize": Case("/detokenize", {"tokens": [97, 98]}),
}
POOLS: dict[str, Case] = {
    "embeddings": EMBEDDING,
    "embedding": Case("/v1/embeddings", {"input": "a b c"}),
    "pooling": Case("/pooling", {"input": "a b c"}),
    "score": Case("/score", {"text_1": "a b", "text_2": ["c", "d e"]}),
    "rerank": Case("/v1/rerank", {"query": "a b", "documents": ["c", "d e"]}),
    "cohere": Case("/v2/rerank", {**COHERE, "max_tokens_per_doc": 2}),
}


SCORES: dict[str, Case] = {
    "pairs": Case("/score", {"text_1": "a b", "text_2": ["c", "d e"]}),
    "classes": Case("/classify", {"input": "a b c"}),
}


def offload() -> list[tuple[Any, str, int]]:
    """What to set so that work which is done in place while it is short goes to threads, which a call waits for."""
    return [
        (prompts, "_INLINE_CHARS", 0),
        (pooled, "_INLINE_CHARS", 0),
        (pooled, "_INLINE_BYTES", 0),
    ]


def talker(folder: Path) -> Bench:
    """A model of random weights that says random bytes."""
    write_tiny(folder, vocab_size=260)
    options = {"load_format": "dummy", "max_num_batched_tokens": 64, "max_model_len": 512}
    state = state_of(folder, byte_tokenizer(), ChatTemplate(TEMPLATE), **options)
    return Bench(state, GOLDEN)


def pooler(folder: Path) -> Bench:
    """One that embeds."""
    write_tiny(folder, vocab_size=260)
    options = {"load_format": "dummy", "runner": "pooling", "max_model_len": 256}
    return Bench(state_of(folder, byte_tokenizer(), **options), EMBEDDING, is_beside=False)


def scorer(folder: Path) -> Bench:
    """One that tells how well two texts go together."""
    head = {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "good"}}
    write_tiny(folder, vocab_size=260, **head)
    options = {"load_format": "dummy", "max_model_len": 256}
    return Bench(state_of(folder, byte_tokenizer(), **options), SCORES["pairs"], is_beside=False)
