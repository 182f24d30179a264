"""Every error a caller, a checkpoint, a file or a peer can cause.

    OctavoError
    |-- RequestError            400  the caller's request cannot be honoured as sent
    |   |-- ContextLengthError  400  prompt (+ max_tokens) does not fit the model
    |   |-- AuthError           401  missing or wrong key
    |   |-- NotFoundError       404  no such model, route or object
    |   |-- OverloadError       429  the queue is full; come back after `retry_after_s`
    |   `-- DeadlineError       504  the caller's own deadline is over
    |-- EngineError             500  this request failed inside the engine; others go on
    |   `-- EngineDeadError     503  the engine process is gone or not ready
    `-- OperatorError           exit code 2  what the operator asked for cannot be started
        |-- ConfigError         a flag, a YAML key or a combination of them
        |-- ModelError          a model folder, its config.json, tokenizer or weights
        `-- MemoryPlanError     weights + KV + activations do not fit

The branch decides the HTTP status. Each error carries a stable `code` (printed, documented, tested), a message that
says what was given and what was expected, and a `fix`: what to do. `info()` is its frozen form for the wire.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import msgspec

NOTHING_WORKS = "E-ENGINE-03"
"""Code of an engine that ends because requests throw, and so does one token of nobody's."""


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An error as data: what crosses the process boundary and becomes a response body."""

    code: str
    message: str
    status: int
    fix: str = ""
    param: str | None = None
    retry_after_s: float | None = None
    phase: str = ""
    """Of a request that made a step throw: what the engine was doing for it."""

    def one_line(self) -> str:
        """`CODE: message. Fix.`, the last line an operator sees."""
        return f"{self.code}: {self.message}" + (f" {self.fix}" if self.fix else "")


class OctavoError(Exception):
    """Root of the tree; see the module docstring."""

    status = 500
    default_code = "E-INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        fix: str = "",
        param: str | None = None,
        retry_after_s: float | None = None,
        phase: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.fix = fix
        self.param = param
        self.retry_after_s = retry_after_s
        self.phase = phase

    def info(self) -> ErrorInfo:
        """The frozen form for the wire."""
        return ErrorInfo(
            code=self.code,
            message=self.message,
            status=self.status,
            fix=self.fix,
            param=self.param,
            retry_after_s=self.retry_after_s,
            phase=self.phase,
        )


class RequestError(OctavoError):
    """The caller's request cannot be honoured as sent."""

    status = 400
    default_code = "invalid_request"


class ContextLengthError(RequestError):
    """The prompt, or prompt plus max_tokens, does not fit the model's context."""

    default_code = "context_length_exceeded"


class AuthError(RequestError):
    """Missing or wrong API key."""

    status = 401
    default_code = "invalid_api_key"


class NotFoundError(RequestError):
    """No such model, route or stored object."""

    status = 404
    default_code = "not_found"


class OverloadError(RequestError):
    """The queue is full."""

    status = 429
    default_code = "overloaded"


class DeadlineError(RequestError):
    """The caller's own deadline is over: the answer, or the rest of it, would be worth nothing."""

    status = 504
    default_code = "deadline_exceeded"


class EngineError(OctavoError):
    """The request failed inside the engine; its neighbours go on."""

    default_code = "engine_error"


class EngineDeadError(EngineError):
    """The engine process is gone, or not ready yet."""

    status = 503
    default_code = "engine_unavailable"


class OperatorError(OctavoError):
    """What the operator asked for cannot be started."""

    default_code = "E-OP-01"


class ConfigError(OperatorError):
    """A flag, a YAML key or a combination of them."""

    default_code = "E-CFG-01"


class ModelError(OperatorError):
    """A model folder, its config.json, tokenizer or weights."""

    default_code = "E-MODEL-01"


class MemoryPlanError(OperatorError):
    """Weights, KV cache and activations do not fit in the memory there is."""

    default_code = "E-MEM-01"


_BY_STATUS: dict[int, type[OctavoError]] = {
    400: RequestError,
    401: AuthError,
    404: NotFoundError,
    429: OverloadError,
    500: EngineError,
    503: EngineDeadError,
    504: DeadlineError,
}

_BY_PREFIX: dict[str, type[OctavoError]] = {
    "E-CFG-": ConfigError,
    "E-REG-": ConfigError,
    "E-GPU-": ConfigError,
    "E-NET-": ConfigError,
    "E-MODEL-": ModelError,
    "E-TOK-": ModelError,
    "E-MEM-": MemoryPlanError,
    "E-": OperatorError,
}
"""Operator errors by their code; the first prefix that fits."""


def from_info(info: ErrorInfo) -> OctavoError:
    """Rebuild an exception from its frozen form."""
    by_code = (kind for prefix, kind in _BY_PREFIX.items() if info.code.startswith(prefix))
    kind = next(by_code, _BY_STATUS.get(info.status, EngineError))
    return kind(
        info.message,
        code=info.code,
        fix=info.fix,
        param=info.param,
        retry_after_s=info.retry_after_s,
        phase=info.phase,
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known name, or the empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
