from __future__ import annotations

import pytest

from octavo.core import env
from octavo.core.errors import ConfigError


def test_a_log_level_is_known_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTAVO_LOG_LEVEL", raising=False)
    assert env.log_level() == "INFO"
    monkeypatch.setenv("OCTAVO_LOG_LEVEL", "debug")
    assert env.log_level() == "DEBUG"
    monkeypatch.setenv("OCTAVO_LOG_LEVEL", "WARN")
    with pytest.raises(ConfigError, match="'WARN'; expected one of DEBUG, INFO, WARNING, ERROR"):
        env.log_level()


def test_the_protocol_of_traces_is_read_where_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", raising=False)
    assert env.otlp_protocol() == ""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    assert env.otlp_protocol() == "http/protobuf"
