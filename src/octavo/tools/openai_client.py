"""A small streaming client for any OpenAI-compatible server, with the clock read at every chunk.

`generate`, `chat` and `bench serve` stand on it. It knows the wire format of /v1/completions,
/v1/chat/completions and /v1/models, and nothing about engines.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from octavo.core.errors import EngineDeadError, EngineError, ErrorInfo, OctavoError, from_info

if TYPE_CHECKING:
    import aiohttp

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
_MAX_ERROR_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 22


class PromptDetails(msgspec.Struct):
    """Part of `usage`."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """`usage` as servers send it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens found in the prefix cache; None when the server does not say."""
        details = self.prompt_tokens_details
        return details.cached_tokens if details is not None else None


class Piece(NamedTuple):
    """One chunk of a stream."""

    at: float
    """`time.perf_counter()` when it was read."""
    text: str
    is_output: bool
    """Whether it stands for generated tokens: not the opening role, the end or the usage."""
    finish_reason: str | None
    usage: Usage | None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: tuple[_Choice, ...] = ()
    usage: Usage | None = None
    error: msgspec.Raw | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: tuple[_Model, ...]


_chunk = msgspec.json.Decoder(_Chunk)


class OpenAIClient:
    """One server. Made by `connect`; owns no connection beyond it."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, api_key: str | None) -> None:
        self._session = session
        self._base_url = base_url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def models(self) -> list[str]:
        """The names that the server answers to.

        Raises:
            OctavoError: unreachable, or not an OpenAI-compatible server.
        """
        body = await self.get("/v1/models")
        try:
            return [model.id for model in msgspec.json.decode(body, type=_Models).data]
        except msgspec.MsgspecError as error:
            raise EngineError(
                f"{self._base_url}/v1/models is not a list of models: {error}.", code="E-URL-02"
            ) from error

    async def get(self, path: str) -> bytes:
        """The body of a GET.

        Raises:
            OctavoError: unreachable, or a status other than 200.
        """
        with _network_errors(self._base_url):
            async with self._session.get(self._base_url + path, headers=self._headers) as response:
                body = await response.read()
                if response.status != 200:
                    raise _status_error(response.status, body)
                return body

    async def post(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        """Status, request id and body of a POST, whatever the status.

        Raises:
            OctavoError: unreachable.
        """
        with _network_errors(self._base_url):
            async with self._session.post(
                self._base_url + path,
                data=body,
                headers={"Content-Type": "application/json", **self._headers},
            ) as response:
                request_id = response.headers.get("x-request-id", "")
                return response.status, request_id, await response.read()

    async def stream(self, path: str, body: Mapping[str, object]) -> AsyncIterator[Piece]:
        """POST a streaming request; its chunks up to the end of the stream.

        Raises:
            OctavoError: refused, unreachable, failed or cut off in mid-stream.
        """
        with _network_errors(self._base_url):
            async with self._session.post(
                self._base_url + path,
                data=msgspec.json.encode(body),
                headers={"Content-Type": "application/json", **self._headers},
            ) as response:
                if response.status != 200:
                    raise _status_error(
                        response.status, await response.content.read(_MAX_ERROR_BYTES)
                    )
                is_finished = False
                async for line in response.content:
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        is_finished = True
                        break
                    piece = _piece(data)
                    is_finished = is_finished or piece.finish_reason is not None
                    yield piece
                if not is_finished:
                    raise EngineError("the stream ended early.", code="E-URL-03")


class Backend(NamedTuple):
    """Someone who answers, and under which name."""

    client: OpenAIClient
    model: str


async def first_model(client: OpenAIClient) -> str:
    """The first name of /v1/models.

    Raises:
        EngineError: the server lists none.
    """
    names = await client.models()
    if not names:
        raise EngineError("the server lists no model.", code="E-URL-02", fix="Name it: --model.")
    return names[0]


@contextlib.asynccontextmanager
async def connect(
    base_url: str, *, api_key: str | None = None, uds: str | None = None, timeout_s: float = 600
) -> AsyncIterator[OpenAIClient]:
    """A client of `base_url` (http:// unless it says), or of the Unix socket `uds`.

    `timeout_s` bounds every silence.
    """
    # lazy: aiohttp costs 200 ms, which only verbs that talk HTTP should pay
    import aiohttp

    connector = aiohttp.UnixConnector(uds, limit=0) if uds else aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=timeout_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, read_bufsize=_MAX_LINE_BYTES
    ) as session:
        url = base_url if "://" in base_url else f"http://{base_url}"
        yield OpenAIClient(session, url, api_key)


@contextlib.contextmanager
def _network_errors(base_url: str) -> Iterator[None]:
    # lazy: see `connect`
    import aiohttp

    try:
        yield
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError) as error:
        raise EngineError(f"{base_url} hung up in mid-answer.", code="E-URL-03") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise EngineDeadError(
            f"no answer from {base_url}: {reason}.",
            code="E-URL-01",
            fix="Is a server running there? Start one with `octavo serve`.",
        ) from error


def _piece(data: bytes) -> Piece:
    now = time.perf_counter()
    try:
        chunk = _chunk.decode(data)
    except msgspec.MsgspecError as error:
        raise EngineError(f"not a chunk of a stream: {error}.", code="E-URL-02") from error
    if chunk.error is not None:
        raise _status_error(500, b'{"error":' + bytes(chunk.error) + b"}")
    if not chunk.choices:
        return Piece(now, "", False, None, chunk.usage)
    choice = chunk.choices[0]
    if choice.delta is None:
        is_output = bool(choice.text) or choice.finish_reason is None
        return Piece(now, choice.text or "", is_output, choice.finish_reason, chunk.usage)
    thought = choice.delta.reasoning_content or choice.delta.reasoning
    text = choice.delta.content or ""
    return Piece(now, text, bool(text or thought), choice.finish_reason, chunk.usage)


def _status_error(status: int, body: bytes) -> OctavoError:
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
        message, code = error.message, str(error.code or f"http_{status}")
    except msgspec.MsgspecError:
        message, code = body[:200].decode("utf-8", "replace"), f"http_{status}"
    return from_info(ErrorInfo(code=code, message=message or f"HTTP {status}", status=status))
