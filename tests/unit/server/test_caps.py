"""The table of bounds: every field has one, each is enforced quickly, and the docs show this very table.

Run as a script to write the page again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes import MODEL, FakeEngine, InProcess, make_state
from octavo.server.app import ROUTES
from octavo.server.caps import Cap, caps, most_bytes
from octavo.server.contract import CONTRACTS
from octavo.server.limits import MAX_BODY_BYTES, MAX_DEPTHS

PAGE = Path(__file__).parents[3] / "docs" / "limits.md"
ENGINE = FakeEngine()
SERVER = InProcess(make_state(ENGINE))
JSON_TYPE = {"content-type": "application/json"}
MODULE_OF_ROUTE = {(row.method, row.path): row.handler.partition(":")[0] for row in ROUTES}
BODIES = {path: one.body for (_, path), one in CONTRACTS.items() if one.body is not None}
SECONDS = 0.010


def page() -> str:
    """docs/limits.md."""
    lines = [
        "# What a caller can send, and how much of it",
        "",
        "Read off the request types by `tests/unit/server/test_caps.py`, which also sends one more than each bound.",
        f"A body has at most {MAX_BODY_BYTES:,} bytes, 128 fields and 60 s to arrive; request line and headers have at",
        "most 65,536 bytes. Each field has a most in bytes, looked at before it is decoded. `x[]` is an entry of the list",
        "`x`, `x{}` a value of the object `x`.",
        "",
    ]
    for path, kind in BODIES.items():
        lines += [f"## POST {path}", "", "| field | what | bound | bytes |", "|---|---|---|---|"]
        for cap in caps(kind):
            is_top = cap.path in kind.__struct_fields__
            size = f"{most_bytes(cap.path):,}" if is_top else ""
            lines.append(f"| `{cap.path}` | {cap.kind} | {cap.bound} | {size} |")
        lines.append("")
    return "\n".join(lines)


def test_page() -> None:
    assert PAGE.read_text() == page(), f"run `python {__file__}` if this was meant"


@pytest.mark.parametrize("path", BODIES)
def test_every_field_has_a_bound(path: str) -> None:
    lacking = [cap.path for cap in caps(BODIES[path]) if cap.high is None]
    assert not lacking, "bound them with Meta, or give them a row in limits.MAX_DEPTHS"


def test_a_type_without_bounds_is_found() -> None:
    class Loose(msgspec.Struct):
        number: int
        half: Any
        text: str
        many: list[float]
        by_name: dict[str, str] | None = None
        fine: bool = False

    found = {cap.path for cap in caps(Loose) if cap.high is None}
    assert found == {
        "number", "half", "text", "many", "many[]", "by_name", "by_name.keys", "by_name{}",
    }  # fmt: skip


GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {
        "model": MODEL,
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "a"}],
    },
    "/v1/messages/count_tokens": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "a"}],
    },
    "/v1/embeddings": {"input": "a"},
    "/pooling": {"input": "a"},
    "/classify": {"input": "a"},
    **dict.fromkeys(("/score", "/v1/score"), {"text_1": "a", "text_2": "b"}),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), {"query": "a", "documents": ["b"]}),
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
    "/v1/batches": {
        "input_file_id": "file-x",
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    },
}


def excess(cap: Cap) -> Iterator[str]:
    """JSON of what is just too much, and of what is far too much, at the cap's own place."""
    assert cap.high is not None
    most = int(cap.high)
    deep = "[" * 100_000 + "]" * 100_000
    if cap.kind == "number":
        yield str(most + 1)
        yield "1000000000" if most < 10**9 else "1" + "0" * 400
        yield from ("1e999", "-1e999", "NaN", deep)
    elif cap.kind == "string":
        yield json.dumps("x" * (most + 1))
        yield deep
    elif cap.kind == "list":
        yield "[" + ",".join(["1"] * (most + 1)) + "]"
        yield deep
    elif cap.kind == "object":
        yield "{" + ",".join(f'"{i}":1' for i in range(most + 1)) + "}"
        yield '{"a":' * 1000 + "1" + "}" * 1000
    else:
        yield "[" * (most + 1) + "]" * (most + 1)
        yield '{"a":' * (most + 1) + "1" + "}" * (most + 1)


def placed(cap: Cap, text: str) -> bytes:
    """`text` at the place that the path names, within lists and objects of one entry."""
    name, *steps = cap.path.replace("[]", " []").replace("{}", " {}").replace(".", " .").split(" ")
    for step in reversed(steps):
        if step == "[]":
            text = f"[{text}]"
        elif step == "{}":
            text = f'{{"1":{text}}}'
        elif step == ".keys":
            text = f"{{{text}:1}}"
        else:
            text = f'{{"{step[1:]}":{text}}}'
    return f'"{name}":{text}'.encode()


@pytest.mark.parametrize("path", BODIES)
def test_each_bound_is_enforced_and_quickly(path: str) -> None:
    """At one more than the cap, at a billion, at NaN and in deep nesting: refused in under 10 ms of this process's time."""
    for cap in caps(BODIES[path]):
        name = cap.path.partition("[")[0].partition("{")[0].partition(".")[0]
        rest = {key: value for key, value in GOOD[path].items() if key != name}
        for text in excess(cap):
            fields = [
                f"{json.dumps(key)}:{json.dumps(value)}".encode() for key, value in rest.items()
            ]
            raw = b"{" + b",".join([*fields, placed(cap, text)]) + b"}"
            best = 1.0
            for _ in range(5):
                started = time.process_time()
                answer = SERVER.call("POST", path, content=raw, headers=JSON_TYPE)
                best = min(best, time.process_time() - started)
                if best < SECONDS:
                    break
            assert answer.status_code in (400, 413), (cap.path, text[:60], answer.text[:200])
            assert best < SECONDS, (cap.path, text[:60], best)
    assert not ENGINE.submitted


def test_depths_are_of_fields_that_need_them() -> None:
    known = {
        cap.path.partition("[")[0].partition("{")[0].partition(".")[0]
        for kind in BODIES.values()
        for cap in caps(kind)
    }
    assert set(MAX_DEPTHS) <= known


def test_every_route_has_its_contract() -> None:
    assert set(CONTRACTS) == set(MODULE_OF_ROUTE)


if __name__ == "__main__":
    PAGE.write_text(page())
