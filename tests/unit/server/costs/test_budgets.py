"""Budgets: counted from charges, and what happens at their end, on every route that generates."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from fakes import FakeEngine, InProcess, make_state
from octavo.core.charge import Charges, RequestCharge
from octavo.core.errors import ConfigError, RequestError
from octavo.meter.ledger import EVERY_S
from octavo.server.costs.budget import Budget
from octavo.server.costs.budgets import NEAR_S, Budgets
from octavo.server.costs.tags import MAX_FEATURES, OTHER, Features, Tags, read_feature

ANN = Tags("ann", "key_1", "search", "m")
MESSAGES = [{"role": "user", "content": "hi"}]
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "a", "max_tokens": 3}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 3, "use_beam_search": True, "n": 2}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "stream": True}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 3}),
    ("/v1/messages", {"model": "fake-model", "messages": MESSAGES, "max_tokens": 3}),
]


def budget(**fields: Any) -> Budget:
    given = {"name": "b", "scope": "all", "value": "", "measure": "tokens", "amount": 100.0}
    return Budget(**{**given, **fields})


def server_with(engine: FakeEngine | None = None, used: float = 0.0, **fields: Any) -> InProcess:
    server = InProcess(make_state(engine, device_price=3600.0))
    server.state.costs.budgets.install([(budget(**fields), used)])
    return server


@pytest.mark.parametrize("path, body", ROUTES)
def test_what_is_used_up_refuses_on_every_route(path: str, body: dict[str, Any]) -> None:
    server = server_with(used=100.0)
    answer = server.post(path, body)
    assert answer.status_code == 429, answer.text
    error = answer.json()["error"]
    assert "budget 'b' of all allows 100 tokens a month; 100 are used" in error["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 31 * 86400
    state = server.state
    assert state.num_in_flight == 0 and not state.costs.budgets.states["b"].spenders
    accounts = state.admission.accounts
    assert (accounts.num_calls, accounts.tokens, accounts.held_bytes) == (0, 0, 0)
    assert not state.costs.book._entries


@pytest.mark.parametrize("path, body", ROUTES)
def test_tokens_are_counted_on_every_route_as_usage_says(path: str, body: dict[str, Any]) -> None:
    server = server_with(amount=1e6)
    for is_stream in (False, True):
        answer = server.post(path, {**body, "stream": is_stream})
        assert answer.status_code == 200, answer.text
    whole = server.post(path, {**body, "stream": False}).json()["usage"]
    total = sum(
        whole.get(name, 0)
        for name in (
            *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"),
            "cache_read_input_tokens",
        )
    )
    assert server.state.costs.budgets.states["b"].used == 3 * total


def test_a_budget_of_tokens_ends_what_runs_at_the_next_token() -> None:
    engine = FakeEngine()
    server = server_with(engine, amount=11.0)
    body = {"prompt": "a", "max_tokens": 500}
    answer = server.post("/v1/completions", body)
    error = answer.json()["error"]
    assert answer.status_code == 429 and error["code"] == "budget_exceeded"
    assert server.state.costs.budgets.states["b"].used == 11.0, "one for the prompt, ten out"
    left_s = server.state.costs.budgets.states["b"].ends - time.time()
    assert error["retry_after_s"] == pytest.approx(left_s, abs=60), "not when a queue is shorter"
    metrics = server.state.metrics
    aborted = "octavo:aborted_tokens_total", [("reason", "budget"), ("kind", "output")]
    assert metrics.value(*aborted) == 10
    refused = "vllm:admission_rejections_total"
    assert metrics.value(refused, [("reason", "queued_reqs")]) == 0
    assert metrics.value("vllm:request_success_total", [("finished_reason", "abort")]) == 1
    answer = server.post("/v1/completions", {**body, "stream": True})
    assert answer.status_code == 429, "and nothing begins"
    assert metrics.value(refused, [("reason", "budget")]) == 1


def test_a_stream_that_is_cut_off_says_why() -> None:
    server = server_with(amount=5.0)
    answer = server.post("/v1/completions", {"prompt": "a", "max_tokens": 50, "stream": True})
    assert answer.status_code == 200 and "budget_exceeded" in answer.text
    batch = server.state.costs.book.take()
    items = {line.item: amount for line, amount in batch.sums.items() if "request" in line.item}
    assert items == {"requests:abort": 1.0}, "its caller's doing"


def test_device_time_ends_a_call_that_says_nothing() -> None:
    """In a long prompt no token comes: the charge itself ends the call."""

    async def run() -> httpx.Response:
        engine = FakeEngine()
        engine.pause_after = 0
        server = server_with(engine, measure="money", amount=2.0)
        costs = server.state.costs
        paces: list[float] = []
        costs.set_pace = paces.append
        costs.book.begin(time.monotonic())
        call = asyncio.create_task(server.acall("POST", "/v1/completions", json=ROUTES[0][1]))
        while not engine.submitted:
            await asyncio.sleep(0)
        name, now = engine.submitted[0].id, time.monotonic()
        assert not costs.budgets.is_near and not paces, f"{NEAR_S} s are left"
        for seconds in (1.5, 1.0):
            charge = RequestCharge(name, prefill_s=seconds)
            costs.book.charge(Charges(since=now, until=now + seconds, requests=(charge,)))
            now += seconds
            assert costs.budgets.is_near == (seconds == 1.5), "each step is told of near the end"
            costs.keep_pace()
        assert paces == [0.0, EVERY_S]
        return await call

    answer = asyncio.run(asyncio.wait_for(run(), 20))
    assert answer.status_code == 429 and "2.5 are used" in answer.text


def test_warn_and_throttle() -> None:
    async def run() -> None:
        engine = FakeEngine()
        server = server_with(engine, used=150.0, action="warn")
        answer = await server.acall("POST", "/v1/completions", json=ROUTES[0][1])
        assert answer.status_code == 200
        assert answer.headers["x-octavo-budget"] == "b; used=1.500; warn"
        budgets = server.state.costs.budgets
        budgets.install([(budget(action="throttle"), 150.0)])
        engine.pause_after = 0
        first = asyncio.create_task(server.acall("POST", "/v1/completions", json=ROUTES[0][1]))
        while len(engine.submitted) < 2:
            await asyncio.sleep(0)
        second = await server.acall("POST", "/v1/completions", json=ROUTES[0][1])
        assert second.status_code == 429 and second.json()["error"]["code"] == "budget_throttled"
        engine.release.set()
        assert (await first).status_code == 200
        third = await server.acall("POST", "/v1/completions", json=ROUTES[0][1])
        assert third.status_code == 200, "one at a time goes on"

    asyncio.run(asyncio.wait_for(run(), 20))


def test_whose_a_budget_is() -> None:
    budgets = Budgets(3600.0)
    scopes = [("key", "k"), ("tenant", "t"), ("feature", "f"), ("all", "")]
    kept = [budget(name=scope, scope=scope, value=value) for scope, value in scopes]
    budgets.install([(one, 0.0) for one in kept])
    budgets.charge(Tags("t", "k", "f", "m"), 0.0, 5.0)
    budgets.charge(Tags("t", "other", "", "m"), 9.0, 0.0)
    budgets.charge(Tags("t", "other", "", "m"), 0.0, 2.0)
    used = {name: state.used for name, state in budgets.states.items()}
    assert used == {"key": 5, "tenant": 7, "feature": 5, "all": 7}
    budgets.install([(kept[0], 5.0)])
    assert set(budgets.states) == {"key"}


def test_periods_are_calendar_days_and_months() -> None:
    moment = 1709164800.0 + 12345  # 2024-02-29
    assert budget(period="day").started(moment) == 1709164800.0
    assert budget(period="day").ends(moment) == 1709164800.0 + 86400
    assert budget().started(moment) == 1706745600.0 and budget().ends(moment) == 1709251200.0
    clock = [moment]
    budgets = Budgets(None, lambda: clock[0])
    budgets.install([(budget(period="day"), 0.0)])
    budgets.charge(ANN, 0.0, 150.0)
    assert not budgets.roll() and budgets.states["b"].is_over
    clock[0] += 86400
    assert budgets.roll() and not budgets.roll()
    state = budgets.states["b"]
    assert state.used == 0.0 and state.ends == 1709164800.0 + 2 * 86400, "whoever cannot ask"


def test_out_of_bounds() -> None:
    for fields in ({"name": ""}, {"name": "a b"}, {"amount": 0.0}, {"amount": float("nan")}):
        with pytest.raises(ConfigError):
            budget(**fields)
    assert read_feature([]) == "" and read_feature(["a/b:c.d_e-9"]) == "a/b:c.d_e-9"
    for values in (["a", "b"], [""], ["a" * 65], ["a b"], ["é"], ["-a"]):
        with pytest.raises(RequestError, match="X-Octavo-Feature"):
            read_feature(values)
    features = Features()
    named = [features.book_as("t", f"f{n}") for n in range(MAX_FEATURES + 9)]
    assert named.count(OTHER) == 9 and features.book_as("other", "f999") == "f999"
    assert features.book_as("t", "f3") == "f3"


def test_a_bad_feature_is_refused_and_a_good_one_booked() -> None:
    server = InProcess(make_state())
    body = ROUTES[0][1]
    answer = server.call("POST", "/v1/completions", json=body, headers={"x-octavo-feature": "a b"})
    assert answer.status_code == 400 and "X-Octavo-Feature" in answer.text
    headers = {"x-octavo-feature": "search"}
    assert server.call("POST", "/v1/completions", json=body, headers=headers).status_code == 200
    features = {line.tags.feature for line in server.state.costs.book.sums if "tokens" in line.item}
    assert features == {"search"}


def test_a_feature_with_a_budget_is_never_one_of_too_many() -> None:
    """Else who invents enough names spends past it."""
    costs = make_state().costs
    for number in range(MAX_FEATURES + 1):
        tags = costs.tab("ann", "key", f"f{number}").tags
    assert tags.feature == OTHER
    costs.budgets.install([(budget(scope="feature", value="search"), 0.0)])
    assert costs.tab("ann", "key", "search").tags.feature == "search"
    assert costs.tab("ann", "key", "more").tags.feature == OTHER


def test_usage_without_a_ledger_says_what_to_do() -> None:
    server = InProcess(make_state())
    answer = server.call("GET", "/v1/usage")
    assert answer.status_code == 400 and "--ledger-url" in answer.text
    for query in ("since=soon", "by=tenants", "for=1d"):
        assert server.call("GET", f"/v1/usage?{query}").status_code == 400


@pytest.mark.parametrize(
    ("scope", "value", "pays", "text"),
    [
        ("all", "", {"ann", "bob", "plain"}, "all"),
        ("feature", "search", {"ann", "bob"}, "feature 'search'"),
        ("tenant", "ann", {"ann", "plain"}, "tenant 'ann'"),
        ("tenant+feature", "ann search", {"ann"}, "tenant 'ann' and feature 'search'"),
        ("key+feature", "key_2 search", {"bob"}, "key 'key_2' and feature 'search'"),
    ],
)
def test_a_budget_is_of_whom_it_says(scope: str, value: str, pays: set[str], text: str) -> None:
    """Any tenant may name any feature, so that of one tenant's nobody else may spend."""
    given = {
        "ann": ANN,
        "bob": Tags("bob", "key_2", "search", "m"),
        "plain": Tags("ann", "key_3", "", "m"),
    }
    one = budget(scope=scope, value=value)
    assert {name for name, tags in given.items() if one.matches(tags)} == pays
    budgets = Budgets(None)
    budgets.install([(one, 100.0)])
    assert f"of {text} allows" in str(budgets.states["b"].error(time.time()))
    assert budgets.has_feature("search") == ("search" in value)


def test_a_tenant_with_many_features_is_not_past_its_budget_of_one() -> None:
    server = server_with(scope="tenant+feature", value="ann search")
    costs = server.state.costs
    for number in range(MAX_FEATURES):
        costs.tab("ann", "key_1", f"f{number}")
    assert costs.tab("ann", "key_1", "search").tags.feature == "search"
    assert costs.tab("ann", "key_1", "another").tags.feature == OTHER
