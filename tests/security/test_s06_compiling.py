"""S6, programs that callers send: what is small to send and large to run ends in bounded time, and a neighbour's
stream goes on with the same bytes.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from grammar_corpus import hostile
from security.conftest import Live

GOLDEN = {"prompt": "def add(a, b):", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
MOST_S = 20.0
TEMPLATES = (
    "{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 'a'|center(10**10) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(80) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{{ '%9999999999d' % 1 }}",
    "{{ [1]|join('a' * 10**7)|replace('', 'a' * 10**7) }}",
    "{" * 100_000,
    "{% if a %}" * 20_000,
)


def programs() -> list[tuple[str, str, dict[str, Any]]]:
    """(name, path, body)."""
    user = [{"role": "user", "content": "a"}]
    found: list[tuple[str, str, dict[str, Any]]] = []
    for name, wanted in hostile().items():
        field = next(
            key for key in ("regex", "json", "grammar") if getattr(wanted, key) is not None
        )
        value = getattr(wanted, field)
        body = {"prompt": "a", "max_tokens": 4, "structured_outputs": {field: value}}
        found.append((name, "/v1/completions", body))
    for source in TEMPLATES:
        body = {"messages": user, "max_tokens": 1, "chat_template": source}
        found.append((source[:40], "/v1/chat/completions", body))
    stops = ["a" * 256] * 16
    found.append(("stops", "/v1/completions", {"prompt": "a", "max_tokens": 4, "stop": stops}))
    pattern = {"type": "object", "patternProperties": {"((a+)+)+$": {}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": pattern}}
    forced = {"messages": user, "tools": [tool], "tool_choice": "required", "max_tokens": 4}
    found.append(("tool", "/v1/chat/completions", forced))
    return found


def test_hostile_programs_end_and_disturb_nobody(live: Live) -> None:
    texts: list[str] = []
    is_over = threading.Event()

    def golden() -> None:
        with live.client() as client:
            while not is_over.is_set() or len(texts) < 2:
                text = ""
                with client.stream(
                    "POST", "/v1/completions", json=GOLDEN | {"stream": True}
                ) as answer:
                    assert answer.status_code == 200
                    for line in answer.iter_lines():
                        if line.startswith("data: {"):
                            text += json.loads(line[6:])["choices"][0]["text"]
                texts.append(text)

    neighbour = threading.Thread(target=golden)
    with live.client() as client:
        alone = client.post("/v1/completions", json=GOLDEN).json()["choices"][0]["text"]
        neighbour.start()
        try:
            slow = []
            for name, path, body in programs():
                begun = time.monotonic()
                answer = client.post(path, json=body)
                seconds = time.monotonic() - begun
                assert answer.status_code in (200, 400, 429), (name, answer.text)
                if seconds > MOST_S:
                    slow.append((name, seconds))
        finally:
            is_over.set()
            neighbour.join(timeout=60)
    assert not slow
    assert len(texts) >= 2 and set(texts) == {alone}
