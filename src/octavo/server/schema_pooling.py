"""The bodies of embeddings, scores, reranking, classes and pooling, field by field; see `schema.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from octavo.core.params import MAX_TOKENS, PoolingTask
from octavo.server.limits import MAX_INPUTS, MAX_NAME_CHARS, MAX_PROMPT_TOKENS
from octavo.server.schema import Milliseconds, Name
from octavo.server.schema import PromptText as Text

Documents = Annotated[list[Any], Meta(min_length=1, max_length=MAX_INPUTS)]
"""Texts, or objects with one under `text`."""


class PoolingBase(msgspec.Struct, kw_only=True, frozen=True):
    """What all of them share. None means not set."""

    model: Name | None = None
    user: Name | None = None
    """Accepted for those who send it; it changes nothing by definition."""
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] | None = None
    deadline_ms: Milliseconds | None = None
    """Milliseconds from the call's arrival after which its answer is worth nothing."""
    cache_salt: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)] | None = None
    """Cached prefixes are shared only with calls of the same key and the same salt."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_TOKENS)] | None = None
    """Cut longer prompts to so many tokens; -1: to what the model takes. Unset: they are refused."""
    truncation_side: Literal["left", "right"] | None = None
    use_activation: bool | None = None


class InputBody(PoolingBase, kw_only=True, frozen=True):
    """What takes texts or token ids."""

    input: Text | Annotated[list[Any], Meta(max_length=MAX_PROMPT_TOKENS)]
    """Text, token ids, or a list of either; `openai/pooled.py` looks inside."""
    add_special_tokens: bool | None = None


class EmbeddingBody(InputBody, kw_only=True, frozen=True):
    """POST /v1/embeddings."""

    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    normalize: bool | None = None
    """What `use_activation` is called in older clients."""


class PoolingBody(InputBody, kw_only=True, frozen=True):
    """POST /pooling."""

    task: PoolingTask | None = None
    """Unset: a row per token where the model has that, else what it is for."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None


class ClassifyBody(InputBody, kw_only=True, frozen=True):
    """POST /classify."""


class ScoreBody(PoolingBase, kw_only=True, frozen=True):
    """POST /score."""

    text_1: Text | Annotated[list[Text], Meta(min_length=1, max_length=MAX_INPUTS)] | None = None
    text_2: Text | Annotated[list[Text], Meta(min_length=1, max_length=MAX_INPUTS)] | None = None
    queries: Text | Annotated[list[Text], Meta(min_length=1, max_length=MAX_INPUTS)] | None = None
    """What `text_1` is called, too."""
    documents: Text | Annotated[list[Text], Meta(min_length=1, max_length=MAX_INPUTS)] | None = None
    """What `text_2` is called, too."""


class RerankBody(PoolingBase, kw_only=True, frozen=True):
    """POST /rerank, in the shape that Jina's clients send."""

    query: Text
    documents: Documents
    top_n: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    """How many results, best first; 0 or unset: all."""
    return_documents: bool | None = None


class CohereRerankBody(PoolingBase, kw_only=True, frozen=True):
    """POST /v2/rerank, in the shape that Cohere's clients send."""

    query: Text
    documents: Documents
    top_n: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    """Longer documents are cut to so many tokens of their own."""
