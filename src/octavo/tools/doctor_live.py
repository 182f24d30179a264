"""`octavo doctor --url`: a running server's health and metrics, looked at for the troubles of `troubles.py`. Only reads."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Literal

from octavo.core import env
from octavo.core.errors import ConfigError
from octavo.tools.samples import Samples
from octavo.tools.troubles import TROUBLES

Finding = tuple[str, Literal["ok", "warn", "fail"], str, str]
"""What was looked at, how it is, what was found, what to do."""

_TIMEOUT_S = 10.0
_MAX_BYTES = 16 << 20
_CODES = {
    "loading": "Wait; /startupz says how far it is.",
    "shutting_down": "It ends; start another.",
    "engine_restarting": "Wait; its log says why the engine ended.",
    "engine_dead": "Restart the server; its log and `reason` have the cause.",
    "engine_not_responding": "It is replaced by itself; if not, restart the server. Is the machine swapping?",
    "engine_hung": "It is replaced by itself; if not, restart the server.",
    "tokenizer_not_responding": "Restart the server; its log has the length of the text.",
    "canary_mismatch": "Restart the server; if it comes back, test the device's memory.",
}
"""What to do, by the code of a health answer (docs/health.md)."""


def examine(url: str, *, api_key: str | None = None, seconds: float = 0.0) -> list[Finding]:
    """Health, then every trouble: of all since the start, or of so many seconds from now.

    Raises:
        ConfigError: no http URL, nothing answers there, or its metrics may not be read.
    """
    base = _base(url)
    found = [_health(base)]
    key = api_key or next(iter(env.api_keys()), None)
    samples = _metrics(base, key)
    if seconds:
        time.sleep(seconds)
        samples = _metrics(base, key).since(samples)
    for trouble in TROUBLES:
        seen = trouble.look(samples)
        name = f"{trouble.symptom}: {trouble.name}"
        if seen is None:
            found.append((name, "ok", f"not: {trouble.sign}", ""))
        else:
            found.append((name, trouble.status, f"{seen}: {trouble.cause}", trouble.fix))
    return found


def _base(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--url {url!r} is no http or https URL.", code="E-CFG-01", fix="Give http://HOST:PORT."
        )
    return f"{parts.scheme}://{parts.netloc}"


def _health(base: str) -> Finding:
    status, body = _get(f"{base}/healthz?deep=1", None)
    try:
        told = json.loads(body)
        code, reason = str(told.get("code", "")), str(told.get("reason", ""))
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"{base}/healthz answers {status} with what is no JSON.",
            code="E-NET-03",
            fix="Is it a server of Octavo?",
        ) from error
    if status == 200:
        return ("health", "ok", "calls are served", "")
    return (
        "health",
        "fail",
        f"{code or status}: {reason}",
        _CODES.get(code, "See docs/health.md."),
    )


def _metrics(base: str, key: str | None) -> Samples:
    status, body = _get(f"{base}/metrics", key)
    if status in (401, 403):
        raise ConfigError(
            f"{base}/metrics answers {status}: it wants the key of an operator.",
            code="E-NET-04",
            fix="Give --api-key, or set OCTAVO_API_KEY.",
        )
    if status != 200:
        raise ConfigError(f"{base}/metrics answers {status}.", code="E-NET-03")
    return Samples.parse(body)


def _get(url: str, key: str | None) -> tuple[int, str]:
    headers = {"user-agent": "octavo-doctor"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # checked by `_base`
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_S) as answer:
            return int(answer.status), _text(answer.read(_MAX_BYTES + 1), url)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _text(error.read(_MAX_BYTES + 1), url)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"nothing answers at {url}: {reason}.", code="E-NET-03", fix="Is the server running?"
        ) from error


def _text(body: bytes, url: str) -> str:
    if len(body) > _MAX_BYTES:
        raise ConfigError(f"{url} answers more than {_MAX_BYTES} bytes.", code="E-NET-03")
    return body.decode("utf-8", "replace")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer; a key is sent nowhere else."""

    def redirect_request(self, *args: object) -> None:
        return None
