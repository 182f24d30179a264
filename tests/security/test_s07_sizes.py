"""S7, sizes and fan-out: every field of every body, with everything that has been too much somewhere, is answered fast."""

from __future__ import annotations

import json
import time
import tracemalloc

import msgspec
import pytest

from fakes import FakeEngine, InProcess, make_state
from octavo.server.contract import CONTRACTS
from octavo.server.limits import MAX_BODY_BYTES

MOST_S = 2.0
"""Each; the machine may be busy. Most take under a millisecond."""
DEEP = "[" * 20_000 + "]" * 20_000
HUGE = (
    "1000000000",
    "-1",
    "-1000000000",
    "9" * 5000,
    "1e400",
    "NaN",
    "Infinity",
    '"' + "a" * 200_000 + '"',
    "[" + ",".join(["0"] * 50_000) + "]",
    "[" + ",".join(['"a"'] * 50_000) + "]",
    "[" + ",".join(["{}"] * 20_000) + "]",
    "{" + ",".join(f'"k{i}":1' for i in range(20_000)) + "}",
    DEEP,
    '{"a":' * 20_000 + "1" + "}" * 20_000,
)
SERVER = InProcess(make_state(FakeEngine()))
KINDS = sorted(
    {(path, one.body) for (_, path), one in CONTRACTS.items() if one.body is not None},
    key=lambda pair: pair[0],
)


@pytest.mark.parametrize(("path", "kind"), KINDS, ids=[path for path, _ in KINDS])
def test_too_much_of_any_field_is_answered_at_once(path: str, kind: type[msgspec.Struct]) -> None:
    slow = []
    for field in msgspec.structs.fields(kind):
        for value in HUGE:
            raw = "{" + f"{json.dumps(field.encode_name)}:{value}" + "}"
            begun = time.monotonic()
            answer = SERVER.call(
                "POST", path, content=raw, headers={"content-type": "application/json"}
            )
            seconds = time.monotonic() - begun
            assert 400 <= answer.status_code < 500, (field.name, value[:40], answer.text[:200])
            assert len(answer.content) < 10_000, "nor is it sent back"
            if seconds > MOST_S:
                slow.append((field.name, value[:40], seconds))
    assert not slow


def test_a_body_is_never_read_beyond_its_bound() -> None:
    sent = 0

    async def parts():  # type: ignore[no-untyped-def]  # an async generator of a test
        nonlocal sent
        for _ in range(1000):
            sent += 1 << 20
            yield b" " * (1 << 20)

    tracemalloc.start()
    try:
        headers = {"content-type": "application/json"}
        answer = SERVER.call("POST", "/v1/completions", content=parts(), headers=headers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 413
    assert peak < 3 * MAX_BODY_BYTES


def test_a_compressed_body_is_refused_unread() -> None:
    for encoding in ("gzip", "br", "deflate", "zstd", "gzip, identity"):
        headers = {"content-type": "application/json", "content-encoding": encoding}
        answer = SERVER.call("POST", "/v1/completions", content=b"\x1f\x8b" * 10, headers=headers)
        assert answer.status_code == 415
