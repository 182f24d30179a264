"""Lines as text and as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from octavo.core import log


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    names = ("octavo", "uvicorn", "opentelemetry")
    before = {
        name: (list(logging.getLogger(name).handlers), logging.getLogger(name).propagate)
        for name in names
    }
    level = logging.getLogger("octavo").level
    for name in names:
        logging.getLogger(name).handlers = []
    yield
    for name, (handlers, propagate) in before.items():
        logging.getLogger(name).handlers = handlers
        logging.getLogger(name).propagate = propagate
    logging.getLogger("octavo").setLevel(level)


def test_json_lines_carry_the_call_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("INFO")
    log.configure("INFO", style="json")
    told = log.REQUEST_ID.set("ab12")
    try:
        logging.getLogger("octavo.x").info("a %s\nb", "line", extra={"fields": {"status": 200}})
    finally:
        log.REQUEST_ID.reset(told)
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        logging.getLogger("octavo.x").exception("failed")
    logging.getLogger("uvicorn.error").warning("from the server")
    lines = capsys.readouterr().err.splitlines()
    first, second, third = map(json.loads, lines)
    assert first["message"] == "a line\nb" and first["level"] == "INFO"
    assert (first["request_id"], first["status"], first["logger"]) == ("ab12", 200, "octavo.x")
    assert first["time"].endswith("Z") and first["process"] > 0
    assert "request_id" not in second and "ValueError: bad\nthing" in second["exception"]
    assert third["message"] == "from the server"


def test_text_lines_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("INFO", style="json")
    log.configure("INFO")
    logging.getLogger("octavo.x").info("hello", extra={"fields": {"status": 200}})
    assert capsys.readouterr().err.endswith(" I octavo.x: hello\n")
