"""Errors as HTTP answers: `{"error": {"message", "type", "param", "code"}}` with the status of the error's branch.

The tree is in `core/errors.py`; the leaves here can only arise while HTTP is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from octavo.core.errors import OctavoError, OverloadError, RequestError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    499: "aborted_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class RoleError(RequestError):
    """The key is known, and may not do this."""

    status = 403
    default_code = "insufficient_role"


class MethodError(RequestError):
    """The route exists, the method does not."""

    status = 405
    default_code = "method_not_allowed"


class BodyTimeoutError(RequestError):
    """The body did not arrive in time."""

    status = 408
    default_code = "request_timeout"


class TooLargeError(RequestError):
    """The body is larger than we read."""

    status = 413
    default_code = "request_too_large"


class AbortedError(RequestError):
    """The call was ended by its id before it had anything to say."""

    status = 499
    default_code = "request_aborted"

    def __init__(self) -> None:
        super().__init__("the request was ended by DELETE /v1/requests/{id}.")


class MediaTypeError(RequestError):
    """The body is not plain JSON."""

    status = 415
    default_code = "unsupported_media_type"


class Forecast(NamedTuple):
    """What was predicted of a call that was refused for it."""

    predicted_ttft_ms: float
    predicted_finish_ms: float | None
    """None where nothing is known of outputs yet."""
    interval_ms: tuple[float, float]
    """In which the first token would come in 80 % of all cases."""
    queue_tokens: int
    """Prompt tokens ahead of it."""


class WouldMissError(OverloadError):
    """The call would not be answered in the time that it allows."""

    default_code = "would_miss_deadline"

    def __init__(
        self, message: str, forecast: Forecast, *, param: str, fix: str, retry_after_s: float
    ) -> None:
        super().__init__(message, param=param, fix=fix, retry_after_s=retry_after_s)
        self.forecast = forecast


class Delay(msgspec.Struct, frozen=True, kw_only=True):
    """What an overloaded server says beside its error."""

    predicted_ttft_ms: float | UnsetType = UNSET
    """Milliseconds to the first token, had the call been taken."""
    predicted_finish_ms: float | UnsetType = UNSET
    interval_ms: tuple[float, float] | UnsetType = UNSET
    """In which the first token would come in 80 % of all cases."""
    queue_tokens: int | UnsetType = UNSET
    """Prompt tokens ahead of the call."""
    retry_after_s: float | UnsetType = UNSET
    """Seconds after which it is worth trying again, as fast as the queue goes down."""


class ErrorDetail(Delay, frozen=True, kw_only=True):
    """What clients of the OpenAI API read."""

    message: str
    type: str
    param: str | None
    code: str
    phase: str | UnsetType = UNSET
    """Of a request that made the engine throw: what was being done for it."""


class ErrorBody(msgspec.Struct, frozen=True):
    """The whole body of an error answer."""

    error: ErrorDetail


def error_json(error: OctavoError) -> bytes:
    """The body for an error: also sent as an event when it comes in the middle of a stream."""
    detail = ErrorDetail(
        message=f"{error.message} {error.fix}".rstrip(),
        type=_TYPES.get(error.status, "server_error"),
        param=error.param,
        code=error.code,
        phase=error.phase or UNSET,
        **_delay(error),
    )
    return msgspec.json.encode(ErrorBody(detail))


def _delay(error: OctavoError) -> dict[str, Any]:
    """The fields of `Delay` that are known."""
    if error.status != 429 or error.retry_after_s is None:
        return {}
    told = {"retry_after_s": round(error.retry_after_s, 3)}
    if isinstance(error, WouldMissError):
        told |= {k: v for k, v in error.forecast._asdict().items() if v is not None}
    return told


def error_response(
    error: OctavoError, body: Callable[[OctavoError], bytes] = error_json
) -> Response:
    """The whole answer for an error, with Retry-After and WWW-Authenticate where they belong."""
    headers: dict[str, str] = {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    retry_after_s = error.retry_after_s
    if retry_after_s is None and error.status in (429, 503):
        retry_after_s = 1.0
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    return Response(body(error), error.status, headers=headers, media_type="application/json")


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    499: "api_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicErrorDetail(Delay, frozen=True, kw_only=True):
    """What clients of the Anthropic API read, and the field that was wrong."""

    type: str
    message: str
    param: str | UnsetType = UNSET


class AnthropicErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The whole body of an error answer to them."""

    type: Literal["error"] = "error"
    error: AnthropicErrorDetail


def anthropic_error_json(error: OctavoError) -> bytes:
    """The same in the shape that clients of the Anthropic API read."""
    detail = AnthropicErrorDetail(
        type=_ANTHROPIC_TYPES.get(error.status, "invalid_request_error"),
        message=f"{error.message} {error.fix}".rstrip(),
        param=UNSET if error.param is None else error.param,
        **_delay(error),
    )
    return msgspec.json.encode(AnthropicErrorBody(error=detail))
