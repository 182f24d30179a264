"""Logging: one line per fact, to standard error, never a secret; a prompt only where the operator asked for it."""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import time
from typing import Literal, TextIO

from octavo.core import env

Style = Literal["text", "json"]

REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""Of the call that the running task answers; on each JSON line that is logged meanwhile."""

_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
_SHARED = ("octavo", "uvicorn", "opentelemetry")
"""Loggers whose lines are ours to write."""


def get_logger(name: str) -> logging.Logger:
    """The logger of a module: `logger = get_logger(__name__)`."""
    return logging.getLogger(name)


def configure(level: str | None = None, *, style: Style = "text") -> None:
    """Send the project's log lines to standard error. Called by each process entry point, and again once the style is known."""
    level = level or env.log_level()
    formatter = JsonLines() if style == "json" else logging.Formatter(_FORMAT, datefmt="%H:%M:%S")
    for name in _SHARED:
        shared = logging.getLogger(name)
        ours = [handler for handler in shared.handlers if isinstance(handler, _ToStderr)]
        if not ours:
            ours = [_ToStderr(sys.stderr)]
            shared.addHandler(ours[0])
            shared.propagate = False
        ours[0].setFormatter(formatter)
    logging.getLogger("octavo").setLevel(level)


class _ToStderr(logging.StreamHandler[TextIO]):
    """Ours: others may have theirs beside it."""


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, process; the call's request_id; and `extra["fields"]`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        request_id = REQUEST_ID.get()
        if request_id:
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
