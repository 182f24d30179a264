"""The watch finds a tokenizer that hangs before a caller does, and starts an engine anew that stays stuck."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fakes import FakeEngine, InProcess, ServerThread, make_state
from octavo.engine.page import Reading
from octavo.server.probes.watch import Watch


def test_a_tokenizer_that_hangs_makes_the_server_unready(monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state()
    release, hangs = threading.Event(), threading.Event()
    encode = state.frontend.tokenizer.encode

    def stuck(text: str, add_special_tokens: bool = True) -> list[int]:
        if hangs.is_set():
            release.wait(60)
        return encode(text, add_special_tokens)

    monkeypatch.setattr(state.frontend.tokenizer, "encode", stuck)
    with ServerThread(state) as server:
        http = InProcess(state)

        def code() -> str:
            answer = server.on_loop(lambda: http.acall("GET", "/readyz"))
            assert answer.status_code == (503 if "code" in answer.json() else 200)
            return str(answer.json().get("code", ""))

        assert code() == ""
        hangs.set()
        begun = time.monotonic()
        while not code():
            assert time.monotonic() < begun + 10
        assert code() == "tokenizer_not_responding"
        assert time.monotonic() - begun < 2.0
        release.set()
        while code():
            assert time.monotonic() < begun + 20


class Restartable(FakeEngine):
    def __init__(self) -> None:
        super().__init__()
        self.restarts: list[str] = []

    def restart(self, reason: str) -> bool:
        self.restarts.append(reason)
        self.state, self.pulse = "restarting", None
        return True


@pytest.mark.parametrize(("beat_age", "step_age"), [(0.1, 1.5), (1.5, 0.0)])
def test_an_engine_that_stays_stuck_is_started_anew(beat_age: float, step_age: float) -> None:
    engine = Restartable()
    stuck = Reading(beat_age_s=beat_age, step_age_s=step_age, allowed_s=1.0, num_steps=1)
    well = Reading(beat_age_s=0.1, step_age_s=0.5, allowed_s=1.0, num_steps=1)
    watch = Watch(make_state(engine))

    async def look(pulse: Reading, count: int) -> None:
        engine.pulse = pulse
        for _ in range(count):
            await watch.look()

    async def looks() -> None:
        await look(stuck, 19)
        await look(well, 1)
        await look(stuck, 19)
        assert not engine.restarts
        await look(stuck, 1)
        assert len(engine.restarts) == 1 and " s" in engine.restarts[0]
        engine.pulse = None  # the engine is starting
        await watch.look()
        assert len(engine.restarts) == 1

    asyncio.run(looks())


def test_one_that_was_frozen_with_its_server_is_not() -> None:
    """Its signs of life are an hour old at the first look, and fresh at the next."""
    engine = Restartable()
    watch = Watch(make_state(engine))
    engine.pulse = Reading(beat_age_s=3600.0, step_age_s=3600.0, allowed_s=1.0, num_steps=1)
    asyncio.run(watch.look())
    engine.pulse = Reading(beat_age_s=0.1, step_age_s=0.1, allowed_s=1.0, num_steps=1)
    asyncio.run(watch.look())
    assert not engine.restarts


@pytest.mark.parametrize("state", ["loading", "dead", "restarting"])
def test_one_that_is_not_there_is_not(state: str) -> None:
    engine = Restartable()
    engine.state = state
    asyncio.run(Watch(make_state(engine)).look())
    assert not engine.restarts
