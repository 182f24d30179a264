"""What each route takes and gives, by type: the one table from which caps, the OpenAPI document and the docs are made.

A row of `server/app.py: ROUTES` without one here is a bug that a test finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import NamedTuple

import msgspec

from octavo.server import admin, requests, schema, schema_pooling
from octavo.server.anthropic import shapes as messages
from octavo.server.anthropic.schema import CountTokensBody, MessagesBody
from octavo.server.costs import report
from octavo.server.errors import AnthropicErrorBody, ErrorBody
from octavo.server.jobs import shapes
from octavo.server.openai import chat, completions, embeddings, models, pooling, score, tokenize
from octavo.server.probes import health
from octavo.server.responses import shapes as responses
from octavo.server.responses.events import ResponseEvent
from octavo.server.responses.schema import ResponsesBody


class Contract(NamedTuple):
    """One route."""

    summary: str
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    """None: not JSON."""
    event: type[msgspec.Struct] | UnionType | None = None
    """Of each event, where `stream` makes the answer a stream; events of several types tell by `type` which they are."""
    failures: tuple[int, ...] = ()
    """Statuses beside those that every route with such a body or key can have."""
    form: bool = False
    """The body is multipart/form-data."""
    media: str = "application/json"
    """Of an answer without a type."""
    query: tuple[str, ...] = ()
    """Query parameters."""
    error: type[msgspec.Struct] = ErrorBody
    """Of an answer that says why not."""


_HEALTH = Contract("Whether calls are served.", answer=health.Health, failures=(503,))
_SCORE = Contract(
    "How alike pairs of texts are.", body=schema_pooling.ScoreBody, answer=score.ScoreList
)
_RERANK = Contract(
    "Documents by how well they answer a query.",
    body=schema_pooling.RerankBody,
    answer=score.RerankList,
)

CONTRACTS: Mapping[tuple[str, str], Contract] = {
    ("GET", "/health"): _HEALTH,
    ("GET", "/ping"): _HEALTH,
    ("POST", "/ping"): _HEALTH,
    ("GET", "/livez"): _HEALTH._replace(summary="503 when a restart would help."),
    ("GET", "/readyz"): _HEALTH._replace(summary="Whether a call sent now would be taken."),
    ("GET", "/startupz"): Contract("How far the start is.", answer=health.Startup, failures=(503,)),
    ("GET", "/healthz"): Contract(
        "Whether calls are served, and with `deep=1` what that is read from.",
        answer=health.DeepHealth,
        failures=(400, 503),
        query=("deep",),
    ),
    ("GET", "/version"): Contract("The version.", answer=health.Version),
    ("GET", "/metrics"): Contract("Prometheus text.", media="text/plain"),
    ("GET", "/openapi.json"): Contract("This document."),
    ("GET", "/console"): Contract("The console's page.", media="text/html"),
    ("GET", "/console/events"): Contract(
        "What the console draws, as it happens.",
        media="text/event-stream",
        failures=(400, 429),
        query=("frames",),
    ),
    ("GET", "/console/{name:path}"): Contract("What the page loads.", media="*/*", failures=(404,)),
    ("GET", "/load"): Contract("Work at hand.", answer=health.Load),
    ("POST", "/reset_prefix_cache"): Contract(
        "Forget every cached prefix that no running request uses.",
        answer=admin.Done,
        failures=(503,),
    ),
    ("GET", "/v1/models"): Contract(
        "Names under which the model answers.", answer=models.ModelList, failures=(503,)
    ),
    ("GET", "/v1/models/{model:path}"): Contract(
        "One of them.", answer=models.Model, failures=(404, 503)
    ),
    ("POST", "/v1/completions"): Contract(
        "Continue a text.",
        body=schema.CompletionBody,
        answer=completions.Completion,
        event=completions.Completion,
    ),
    ("POST", "/v1/chat/completions"): Contract(
        "Answer a conversation.",
        body=schema.ChatBody,
        answer=chat.ChatCompletion,
        event=chat.Chunk,
    ),
    ("POST", "/v1/responses"): Contract(
        "Answer, and keep the answer to go on from.",
        body=ResponsesBody,
        answer=responses.ResponseObject,
        event=ResponseEvent,
    ),
    ("GET", "/v1/responses/{response_id}"): Contract(
        "A kept answer.", answer=responses.ResponseObject, failures=(400, 404)
    ),
    ("DELETE", "/v1/responses/{response_id}"): Contract(
        "Forget one.", answer=responses.ResponseDeleted, failures=(400, 404)
    ),
    ("POST", "/v1/responses/{response_id}/cancel"): Contract(
        "End one that is made in the background.",
        answer=responses.ResponseObject,
        failures=(400, 404),
    ),
    ("GET", "/v1/responses/{response_id}/input_items"): Contract(
        "What it answered.",
        answer=responses.InputItems,
        failures=(400, 404),
        query=("limit", "order", "after"),
    ),
    ("POST", "/v1/messages"): Contract(
        "Answer a conversation, in the shape of the Anthropic API.",
        body=MessagesBody,
        answer=messages.MessageObject,
        event=messages.MessageEvent,
        error=AnthropicErrorBody,
    ),
    ("POST", "/v1/messages/count_tokens"): Contract(
        "The length of its prompt.",
        body=CountTokensBody,
        answer=messages.TokenCount,
        error=AnthropicErrorBody,
    ),
    ("GET", "/v1/requests/{request_id}"): Contract(
        "How far a call is, or how it went.",
        answer=requests.RequestObject,
        failures=(400, 404, 429, 504),
        query=("what_if",),
    ),
    ("DELETE", "/v1/requests/{request_id}"): Contract(
        "End a call wherever it stands.", answer=requests.RequestObject, failures=(404,)
    ),
    ("GET", "/v1/usage"): Contract(
        "What was used and what it cost: a key's tenant, or to an operator everyone.",
        answer=report.Usage,
        failures=(400, 404),
        query=("since", "until", "by"),
    ),
    ("POST", "/v1/embeddings"): Contract(
        "A vector for each input.",
        body=schema_pooling.EmbeddingBody,
        answer=embeddings.EmbeddingList,
    ),
    ("POST", "/pooling"): Contract(
        "What a pooling model makes of each input.",
        body=schema_pooling.PoolingBody,
        answer=pooling.PoolingList,
    ),
    ("POST", "/classify"): Contract(
        "The class of each input.", body=schema_pooling.ClassifyBody, answer=pooling.ClassList
    ),
    ("POST", "/score"): _SCORE,
    ("POST", "/v1/score"): _SCORE,
    ("POST", "/rerank"): _RERANK,
    ("POST", "/v1/rerank"): _RERANK,
    ("POST", "/v2/rerank"): Contract(
        "Documents by how well they answer a query, in the shape of Cohere's API.",
        body=schema_pooling.CohereRerankBody,
        answer=score.CohereRerankList,
    ),
    ("POST", "/v1/files"): Contract("Keep a file.", answer=shapes.File, form=True, failures=(429,)),
    ("GET", "/v1/files"): Contract(
        "A key's files.",
        answer=shapes.FileList,
        failures=(400, 404),
        query=("purpose", "limit", "order", "after"),
    ),
    ("GET", "/v1/files/{file_id}"): Contract("One.", answer=shapes.File, failures=(400, 404)),
    ("DELETE", "/v1/files/{file_id}"): Contract(
        "Forget a file.", answer=shapes.Deleted, failures=(400, 404)
    ),
    ("GET", "/v1/files/{file_id}/content"): Contract(
        "Its bytes.", failures=(400, 404), media="application/octet-stream"
    ),
    ("POST", "/v1/batches"): Contract(
        "Begin a job of many calls.", body=schema.BatchBody, answer=shapes.Batch
    ),
    ("GET", "/v1/batches"): Contract(
        "A key's jobs.", answer=shapes.BatchList, failures=(400, 404), query=("limit", "after")
    ),
    ("GET", "/v1/batches/{batch_id}"): Contract("One.", answer=shapes.Batch, failures=(400, 404)),
    ("POST", "/v1/batches/{batch_id}/cancel"): Contract(
        "End a job early.", answer=shapes.Batch, failures=(400, 404)
    ),
    ("POST", "/tokenize"): Contract(
        "Text or messages to token ids.", body=schema.TokenizeBody, answer=tokenize.Tokens
    ),
    ("GET", "/tokenizer_info"): Contract(
        "The tokenizer's special tokens.", answer=tokenize.TokenizerInfo, failures=(503,)
    ),
    ("POST", "/detokenize"): Contract(
        "Token ids to text.", body=schema.DetokenizeBody, answer=tokenize.Text
    ),
}
"""(method, path) -> what goes in and out."""
