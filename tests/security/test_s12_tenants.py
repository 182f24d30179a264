"""S12, one tenant's prompts from another's side: nothing that is measured of a guess tells whether it is right.

The attack is the one that times prefix-cache hits. Here it has better eyes than a clock: the engine's own count of
cached tokens, the number of steps to the first token, and the tokens of the prompt that were computed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from fakes import FakeEngine, InProcess
from local_engine import LocalEngine, request, write_tiny
from octavo.core.result import Finished
from octavo.server.openai.sampling import salted
from security.keyed import keyed_state

NUM_GUESSES = 24
PROMPT_TOKENS = 96
MOST_AUC = 0.55


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    folder: Path = tmp_path_factory.mktemp("model")
    return LocalEngine(write_tiny(folder / "tiny"), max_num_batched_tokens=32)


def auc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """The chance that a right guess looks more like a hit than a wrong one; 0.5 tells nothing."""
    pairs = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
    return sum(pairs) / len(pairs)


def prompt(rng: random.Random) -> list[int]:
    return [rng.randrange(300) for _ in range(PROMPT_TOKENS)]


def observed(engine: LocalEngine, name: str, ids: list[int], scope: str) -> tuple[int, int, int]:
    """Cached tokens as answered, steps until the first token (negated), and hits as counted."""
    hits = engine.engine.scheduler.stats().prefix_hits
    engine.submit(request(name, ids, cache_scope=scope, max_tokens=1))
    steps = 0
    while name not in engine.ends:
        engine.step()
        steps += 1
    end = engine.ends[name]
    assert isinstance(end, Finished)
    return end.num_cached, -steps, engine.engine.scheduler.stats().prefix_hits - hits


def attack(engine: LocalEngine, victim: str, attacker: str, seed: int) -> float:
    """The best AUC of all that is observed, over right and wrong guesses of the victim's prompts."""
    rng = random.Random(seed)
    right, wrong = [], []
    for number in range(NUM_GUESSES):
        secret, other = prompt(rng), prompt(rng)
        observed(engine, f"v{seed}-{number}", secret, victim)
        right.append(observed(engine, f"r{seed}-{number}", secret, attacker))
        wrong.append(observed(engine, f"w{seed}-{number}", other, attacker))
    found = [auc([a[i] for a in right], [b[i] for b in wrong]) for i in range(len(right[0]))]
    return max(max(one, 1 - one) for one in found)


def test_the_attack_works_where_a_cache_is_shared(engine: LocalEngine) -> None:
    assert attack(engine, "one", "one", 1) > 0.95, "else the tests below say nothing"


def test_no_guess_of_another_tenants_prompt_can_be_told_right(engine: LocalEngine) -> None:
    assert attack(engine, "one", "two", 2) <= MOST_AUC


def test_nor_with_any_salt_that_a_caller_can_write(engine: LocalEngine) -> None:
    """The victim's own salt, and salts that spell its scope."""
    for seed, salt in enumerate(("s", "one", "", salted("one", "s"), "3:one", "one" + "s")):
        attacker = salted("two", salt) if salt else "two"
        assert attack(engine, salted("one", "s"), attacker, 10 + seed) <= MOST_AUC
        assert attack(engine, "one", attacker, 20 + seed) <= MOST_AUC


def test_a_salt_never_spells_another_scope() -> None:
    scopes = ["", "one", "two", "onetwo", "a" * 48, "3", "3:one"]
    salts = ["one", "two", "s", ":", "3:one", "one3:", "\x00", "a" * 256]
    seen: dict[str, tuple[str, str]] = {}
    for scope in scopes:
        for salt in salts:
            made = salted(scope, salt)
            assert made not in scopes and made not in seen, (scope, salt, seen.get(made))
            seen[made] = (scope, salt)


def test_tenant_and_scope_come_from_the_key_whatever_the_body_says(tmp_path: Path) -> None:
    engine = FakeEngine()
    state, keys = keyed_state(tmp_path / "keys", engine)
    server = InProcess(state)

    def send(key: str, **extra: str) -> tuple[str, str]:
        headers = {"authorization": f"Bearer {key}", "x-tenant": "one", "x-request-id": "same"}
        body = {"prompt": "a", "max_tokens": 1, **extra}
        answer = server.call("POST", "/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200
        sent = engine.submitted[-1]
        return sent.tenant, sent.cache_scope

    assert send(keys.user) == send(keys.operator) == ("one", "one")
    assert send(keys.other) == ("two", "two")
    scopes = {
        send(keys.user, cache_salt="s")[1],
        send(keys.other, cache_salt="s")[1],
        send(keys.other, cache_salt="one")[1],
        send(keys.other, cache_salt=send(keys.user, cache_salt="s")[1])[1],
    }
    assert len(scopes) == 4
    for name in ("user", "prompt_cache_key", "safety_identifier", "request_id"):
        assert send(keys.other, **{name: "one"}) == ("two", "two")
    ids = [sent.id for sent in engine.submitted]
    assert len(set(ids)) == len(ids) and not any("same" in one or "one" in one for one in ids)
    state.keys.close()


def test_what_one_tenant_keeps_no_other_finds(tmp_path: Path) -> None:
    """By its very id, which is no secret among those who log requests."""
    engine = FakeEngine()
    engine.eos_after = 3
    state, keys = keyed_state(tmp_path / "keys", engine)
    server = InProcess(state)
    mine, other = ({"authorization": f"Bearer {key}"} for key in (keys.user, keys.other))
    made = server.call("POST", "/v1/responses", json={"input": "canary"}, headers=mine).json()["id"]
    url = f"/v1/responses/{made}"
    assert server.call("GET", url, headers=mine).status_code == 200
    for method, path in (
        ("GET", url),
        ("DELETE", url),
        ("POST", f"{url}/cancel"),
        ("GET", f"{url}/input_items"),
    ):
        assert server.call(method, path, headers=other).status_code == 404
    body = {"input": "more", "previous_response_id": made}
    assert server.call("POST", "/v1/responses", json=body, headers=other).status_code == 404
    assert server.call("POST", "/v1/responses", json=body, headers=mine).status_code == 200
    state.keys.close()


def test_freed_blocks_hold_nothing_for_the_next(engine: LocalEngine) -> None:
    """Whatever another tenant left in the cache's memory, an answer is the same as in a fresh engine."""
    rng = random.Random(7)
    ids = prompt(rng)
    engine.run([request("alone", ids, cache_scope="three", max_tokens=12)])
    for number in range(12):
        engine.run([request(f"filler{number}", prompt(rng), cache_scope="four", max_tokens=12)])
    engine.run([request("after", ids, cache_scope="five", max_tokens=12)])
    assert engine.tokens["after"] == engine.tokens["alone"]
