"""Access lines: one per call, with its id, status and time. What looks in on a server's health has one when its answer changes."""

from __future__ import annotations

from starlette.types import Scope

from octavo.core.log import get_logger

logger = get_logger("octavo.access")

PROBES = frozenset(
    {"/health", "/ping", "/livez", "/readyz", "/startupz", "/healthz", "/metrics", "/load"}
)
"""Asked every few seconds by machines."""
_MOST_CHARS = 256


class AccessLog:
    """Owner: the application."""

    def __init__(self) -> None:
        self._last = dict.fromkeys(PROBES, 200)
        """What each probe was answered last."""

    def add(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        """Log one call. Its query is left out: it may hold what is secret."""
        path = str(scope["path"])
        if path in self._last:
            last, self._last[path] = self._last[path], status
            if status == last:
                return
        # As it came, percent-encoded: what the caller writes makes no line of its own.
        raw = scope.get("raw_path", b"").partition(b"?")[0][:_MOST_CHARS]
        shown = raw.decode("ascii", "replace")
        client = scope.get("client")
        caller = f"{client[0]}:{client[1]}" if client else "local"
        fields = {
            "request_id": request_id,
            "client": caller,
            "method": scope["method"],
            "path": shown,
            "status": status,
            "seconds": round(seconds, 6),
        }
        logger.info(
            '%s "%s %s" %d %.1f ms %s',
            caller,
            scope["method"],
            shown,
            status,
            1000 * seconds,
            request_id,
            extra={"fields": fields},
        )
