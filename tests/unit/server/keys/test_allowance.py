"""What a key may use: buckets on a clock of the test's, and the 429 that says which, how much and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import FakeEngine, InProcess, make_state, running
from octavo.server.auth import KeyRing
from octavo.server.keys.allowance import Allowance, LimitError
from octavo.server.keys.rows import KeyRow, Limits
from octavo.server.keys.store import KeyStore

BODY = {"prompt": "abcd", "max_tokens": 6}


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def refused(act: Any, *args: Any) -> LimitError:
    with pytest.raises(LimitError) as caught:
        act(*args)
    return caught.value


def test_requests_come_back_evenly() -> None:
    clock = Clock()
    account = Allowance(Limits(requests_per_minute=30), clock)
    for _ in range(30):
        account.count_request()
    error = refused(account.count_request)
    assert error.limit == "requests" and error.retry_after_s == pytest.approx(2.0)
    assert "30 requests per minute" in error.message and "2s" in error.message
    clock.now += 2.0
    account.count_request()
    refused(account.count_request)
    clock.now += 3600.0
    assert account.headers()["x-ratelimit-remaining-requests"] == "30", "never more than a minute's"


def test_a_prompt_is_charged_at_once_and_output_as_it_comes() -> None:
    clock = Clock()
    account = Allowance(Limits(tokens_per_minute=60), clock)
    account.begin(20)
    account.spend(50)  # a running call is not cut off: overdrawn by ten
    error = refused(account.begin, 5)
    assert error.limit == "tokens" and error.retry_after_s == pytest.approx(15.0)
    assert account.headers() == {
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "70s",
    }
    clock.now += 15.0
    account.begin(5)


def test_a_prompt_of_more_than_a_minute_waits_for_a_full_bucket_and_pays_for_all() -> None:
    clock = Clock()
    account = Allowance(Limits(tokens_per_minute=60), clock)
    account.begin(1)
    assert refused(account.begin, 300).retry_after_s == pytest.approx(1.0)
    clock.now += 1.0
    account.begin(300)
    assert refused(account.begin, 1).retry_after_s == pytest.approx(241.0)


def test_calls_at_once() -> None:
    account = Allowance(Limits(max_concurrency=2))
    account.begin(1)
    account.begin(1)
    assert refused(account.begin, 1).limit == "concurrency"
    account.end()
    account.begin(1)
    assert account.headers() == {}


def test_changed_limits_hold_at_once_and_forget_nothing() -> None:
    clock = Clock()
    account = Allowance(Limits(requests_per_minute=10), clock)
    for _ in range(10):
        account.count_request()
    account.set_limits(Limits(requests_per_minute=12, max_concurrency=1))
    account.count_request()
    account.count_request()
    refused(account.count_request)
    account.set_limits(Limits())
    for _ in range(100):
        account.count_request()


def keyed(tmp_path: Path, engine: FakeEngine | None = None, **limits: int) -> tuple[Any, str]:
    """A server's state with one stored key of these limits."""
    path = tmp_path / "keys"
    with KeyStore(path, create=True) as store:
        fields = {"id": "", "hash": b"", "prefix": "", "tenant": "", "created": 1}
        key = store.add(KeyRow(name="a", limits=Limits(**limits), **fields))  # type: ignore[arg-type]
    state = make_state(engine)
    state.keys = KeyRing((), path)
    return state, key


def test_the_answer_says_which_limit_how_much_and_when(tmp_path: Path) -> None:
    state, key = keyed(tmp_path, requests_per_minute=2, tokens_per_minute=60)
    server, headers = InProcess(state), {"authorization": f"Bearer {key}"}
    good = server.call("POST", "/v1/completions", json=BODY, headers=headers)
    assert good.status_code == 200
    assert good.headers["x-ratelimit-limit-requests"] == "2"
    assert good.headers["x-ratelimit-remaining-requests"] == "1"
    assert 50 <= int(good.headers["x-ratelimit-remaining-tokens"]) < 60, "4 of prompt, 6 of output"
    server.call("POST", "/tokenize", json={"prompt": "a"}, headers=headers)
    for path in ("/v1/completions", "/v1/messages", "/v1/embeddings", "/tokenize"):
        bad = server.call("POST", path, json=BODY, headers=headers)
        assert bad.status_code == 429
        assert 1 <= int(bad.headers["retry-after"]) <= 30
        assert bad.headers["x-ratelimit-remaining-requests"] == "0"
        error = bad.json()["error"]
        assert "2 requests per minute" in error["message"]
        assert error.get("code", "rate_limit_exceeded") == "rate_limit_exceeded"
    assert server.call("GET", "/v1/models", headers=headers).status_code == 200
    rejected = state.metrics.value("vllm:admission_rejections_total", [("reason", "key_requests")])
    assert rejected == 4


def test_tokens_of_every_generating_endpoint_are_charged(tmp_path: Path) -> None:
    state, key = keyed(tmp_path, tokens_per_minute=1000)
    server, headers = InProcess(state), {"authorization": f"Bearer {key}"}
    left = 1000
    user = [{"role": "user", "content": "a"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {**BODY, "n": 2},
        "/v1/chat/completions": {"messages": user, "max_tokens": 3},
        "/v1/responses": {"input": "a", "max_output_tokens": 3},
        "/v1/messages": {"model": "fake-model", "messages": user, "max_tokens": 3},
    }
    for path, body in bodies.items():
        answer = server.call("POST", path, json=body, headers=headers)
        usage = answer.json()["usage"]
        prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
        prompt += usage.get("cache_read_input_tokens", 0)
        output = usage.get("completion_tokens", usage.get("output_tokens"))
        left -= prompt + output
        account = next(iter(state.keys._allowances.values()))
        assert account._tokens is not None
        assert round(account._tokens._level) - left in range(0, 20), path  # it fills meanwhile
        account._tokens._level = left
    assert server.call("POST", "/v1/completions", json=BODY, headers=headers).status_code == 200


def test_a_key_has_so_many_calls_at_once(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.pause_after = 1
    path = tmp_path / "keys"
    with KeyStore(path, create=True) as store:
        fields = {
            "id": "",
            "hash": b"",
            "prefix": "",
            "created": 1,
            "limits": Limits(None, None, 1),
        }
        one = store.add(KeyRow(name="a", tenant="t", **fields))  # type: ignore[arg-type]
        two = store.add(KeyRow(name="b", tenant="t", **fields))  # type: ignore[arg-type]
    with running(engine) as server:
        server.state.keys = KeyRing((), path)
        url = f"{server.url}/v1/completions"
        headers = {"authorization": f"Bearer {one}"}
        with (
            httpx.Client() as client,
            client.stream("POST", url, json={**BODY, "stream": True}, headers=headers) as first,
        ):
            lines = first.iter_lines()  # kept: dropping it hangs up
            next(lines)
            refused = httpx.post(url, json=BODY, headers=headers)
            assert refused.status_code == 429
            assert "1 generating calls at once" in refused.json()["error"]["message"]
            others = {"authorization": f"Bearer {two}"}
            server.on_loop(engine.release.set)
            assert httpx.post(url, json=BODY, headers=others).status_code == 200, (
                "limits are per key"
            )
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert httpx.post(url, json=BODY, headers=headers).status_code == 200
